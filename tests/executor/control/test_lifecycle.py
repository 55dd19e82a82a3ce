import pytest

from executor.control.lifecycle import TRANSITIONS, LifecycleError, State, Trigger, next_state


def test_a_request_that_is_preempted_once():
    state = State.WAITING
    for trigger in (
        Trigger.ADMIT,
        Trigger.PREFILLED,
        Trigger.PREEMPT,
        Trigger.RELEASE,
        Trigger.ADMIT,
        Trigger.END,
    ):
        state = next_state(state, trigger)
    assert next_state(state, Trigger.RELEASE) == State.ENDED


def test_an_illegal_transition_names_event_and_state():
    with pytest.raises(LifecycleError, match="ADMIT is illegal in state DECODE"):
        next_state(State.DECODE, Trigger.ADMIT)


def test_nothing_leads_out_of_the_end():
    assert not [trigger for state, trigger in TRANSITIONS if state == State.ENDED]


def test_every_other_state_can_come_to_an_end():
    for state in set(State) - {State.ENDED}:
        reached = {state}
        while more := {TRANSITIONS[s, t] for s, t in TRANSITIONS if s in reached} - reached:
            reached |= more
        assert State.ENDED in reached, state.name
