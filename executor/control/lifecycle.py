"""The life of a request, as one table.

    WAITING ─ADMIT─▶ PREFILL ─PREFILLED─▶ DECODE ─┐
       ▲                └──────────PREEMPT────────┴──▶ PREEMPTING ─RELEASE─▶ WAITING
       └ holds no row, no pages                    │
    any of them ─END─▶ ENDING ─RELEASE─▶ ENDED     │  (WAITING ─END─▶ ENDED at once: nothing to release)

A row is held from ADMIT to RELEASE. RELEASE comes when the last step that could touch the row has retired;
before that, PREEMPTING and ENDING rows are in no new plan. Whether a waiting request's adapter is resident
is a fact about the adapter (`slots.py`), not a state of the request.
"""

from __future__ import annotations

from enum import IntEnum, auto


class State(IntEnum):
    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()
    PREEMPTING = auto()
    ENDING = auto()
    ENDED = auto()


class Trigger(IntEnum):
    ADMIT = auto()
    PREFILLED = auto()
    PREEMPT = auto()
    END = auto()
    RELEASE = auto()


TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.WAITING, Trigger.ADMIT): State.PREFILL,
    (State.WAITING, Trigger.END): State.ENDED,
    (State.PREFILL, Trigger.PREFILLED): State.DECODE,
    (State.PREFILL, Trigger.PREEMPT): State.PREEMPTING,
    (State.PREFILL, Trigger.END): State.ENDING,
    (State.DECODE, Trigger.PREEMPT): State.PREEMPTING,
    (State.DECODE, Trigger.END): State.ENDING,
    (State.PREEMPTING, Trigger.END): State.ENDING,
    (State.PREEMPTING, Trigger.RELEASE): State.WAITING,
    (State.ENDING, Trigger.RELEASE): State.ENDED,
}


class LifecycleError(Exception):
    """An event that must not happen in this state: a bug of ours, never a client's doing."""


def next_state(state: State, trigger: Trigger) -> State:
    """Returns where `trigger` leads; raises LifecycleError, naming both, where it leads nowhere."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise LifecycleError(f"{trigger.name} is illegal in state {state.name}") from None
