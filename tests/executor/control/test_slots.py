import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from executor.control.lifecycle import LifecycleError
from executor.control.residency import Residency
from executor.control.slots import (
    Acquire,
    AdapterSlots,
    Clear,
    Copy,
    Install,
    Prefetch,
    Release,
    Retired,
)


def resident(slots: AdapterSlots, digest: str, units: int) -> None:
    """Brings an adapter in where there is room for it."""
    slots.acquire(digest)
    slots.granted(digest, units)
    assert slots.place(digest, []) == []
    slots.copied(digest)


def test_the_way_in_and_out():
    slots = AdapterSlots(slots=2, units=100)
    slots.prefetch("a")
    assert slots.take_actions() == [Prefetch("a")]
    slots.acquire("a")
    slots.granted("a", 30)
    assert slots.residency("a") == Residency.STAGED
    assert slots.place("a", []) == []
    slots.copied("a")
    slots.evict("a")
    expected = [Acquire("a"), Copy("a", 0, 0), Install(0, "a"), Clear(0), Release("a")]
    assert slots.take_actions() == expected
    assert slots.take_actions() == []
    assert slots.free_units == 100


def test_what_is_acquired_at_once_is_not_hinted_at():
    slots = AdapterSlots(slots=2, units=100)
    for digest in ("a", "b"):
        slots.prefetch(digest)
    slots.acquire("a")
    assert slots.take_actions() == [Prefetch("b"), Acquire("a")]


def test_an_illegal_transition_names_event_and_state():
    slots = AdapterSlots(slots=1, units=10)
    with pytest.raises(LifecycleError, match="COPIED is illegal while adapter a is ABSENT"):
        slots.copied("a")
    slots.acquire("a")
    with pytest.raises(LifecycleError, match="ACQUIRE is illegal while adapter a is LEASING"):
        slots.acquire("a")
    with pytest.raises(LifecycleError, match="EVICT is illegal while adapter a is LEASING"):
        slots.evict("a")


def test_a_pinned_adapter_is_not_evicted():
    slots = AdapterSlots(slots=1, units=10)
    resident(slots, "a", 5)
    assert slots.pin("a") == 0
    with pytest.raises(AssertionError, match="1 rows use it"):
        slots.evict("a")


def test_room_is_made_by_the_least_recently_used():
    slots = AdapterSlots(slots=3, units=30)
    for digest in ("a", "b", "c"):
        resident(slots, digest, 10)
    slots.pin("a")
    slots.unpin("a")
    slots.acquire("d")
    slots.granted("d", 10)
    assert slots.place("d", list(slots.resident)) == ["b"]
    slots.check_integrity()


def test_nothing_is_evicted_where_it_would_not_help():
    slots = AdapterSlots(slots=4, units=30)
    for digest in ("a", "b", "c"):
        resident(slots, digest, 10)
    slots.pin("b")
    slots.acquire("d")
    slots.granted("d", 20)
    idle = [adapter for adapter in slots.resident if not adapter.pins]
    assert slots.place("d", idle) is None, "a and c are not neighbours"
    assert len(slots.resident) == 3
    slots.unpin("b")
    assert slots.place("d", list(slots.resident)) == ["a", "b"], "the cheaper of two pairs of neighbours"


def test_a_failed_copy_gives_slot_and_room_back():
    slots = AdapterSlots(slots=1, units=10)
    slots.acquire("a")
    slots.granted("a", 10)
    slots.place("a", [])
    slots.failed("a")
    slots.check_integrity()
    resident(slots, "b", 10)


def test_a_retired_adapter_leaves_once_it_is_idle():
    slots = AdapterSlots(slots=1, units=10)
    resident(slots, "a", 5)
    slots.pin("a")
    slots.retire("a")
    assert not slots.leave_retired("a")
    slots.unpin("a")
    slots.take_actions()
    assert slots.leave_retired("a")
    assert slots.take_actions() == [Clear(0), Release("a"), Retired("a")]
    assert not slots.retiring


def test_retiring_what_was_never_here_is_answered_too():
    slots = AdapterSlots(slots=1, units=10)
    slots.retire("a")
    assert slots.leave_retired("a")
    assert slots.take_actions() == [Retired("a")]


def test_a_retired_adapter_on_its_way_in():
    slots = AdapterSlots(slots=1, units=10)
    slots.acquire("a")
    slots.retire("a")
    assert slots.leave_retired("a")
    assert slots.take_actions()[-2:] == [Release("a"), Retired("a")]
    slots.acquire("a")
    slots.granted("a", 5)
    slots.place("a", [])
    slots.retire("a")
    assert not slots.leave_retired("a"), "a copy cannot be stopped"
    slots.copied("a")
    assert slots.leave_retired("a")


class SlotsMachine(RuleBasedStateMachine):
    """Any order of events that the table allows; integrity after each."""

    digests = st.sampled_from("abcdef")

    def __init__(self) -> None:
        super().__init__()
        self.slots = AdapterSlots(slots=3, units=40)
        self.pins: list[str] = []

    def all_in(self, residency: Residency) -> list[str]:
        return [digest for digest in "abcdef" if self.slots.residency(digest) == residency]

    @rule(digest=digests)
    def acquire(self, digest: str):
        if self.slots.residency(digest) == Residency.ABSENT:
            self.slots.acquire(digest)

    @precondition(lambda self: self.all_in(Residency.LEASING))
    @rule(units=st.integers(0, 40))
    def grant(self, units: int):
        self.slots.granted(self.all_in(Residency.LEASING)[0], units)

    @precondition(lambda self: self.all_in(Residency.STAGED))
    @rule()
    def place(self):
        idle = [adapter for adapter in self.slots.resident if not adapter.pins]
        before = {adapter.digest for adapter in self.slots.resident}
        evicted = self.slots.place(self.all_in(Residency.STAGED)[0], idle)
        assert before - {adapter.digest for adapter in self.slots.resident} == set(evicted or ())
        assert not set(evicted or ()) & set(self.pins)

    @precondition(lambda self: self.all_in(Residency.COPYING))
    @rule(works=st.booleans())
    def end_copy(self, works: bool):
        digest = self.all_in(Residency.COPYING)[0]
        if works:
            self.slots.copied(digest)
        else:
            self.slots.failed(digest)

    @precondition(lambda self: self.slots.resident)
    @rule(which=st.integers(0, 5))
    def pin(self, which: int):
        digests = [adapter.digest for adapter in self.slots.resident]
        digest = digests[which % len(digests)]
        self.slots.pin(digest)
        self.pins.append(digest)

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self):
        self.slots.unpin(self.pins.pop(0))

    @rule(digest=digests)
    def retire(self, digest: str):
        self.slots.retire(digest)
        left = self.slots.leave_retired(digest)
        assert left == (self.slots.residency(digest) == Residency.ABSENT)

    @invariant()
    def balanced(self):
        self.slots.check_integrity()
        assert self.slots.pins == len(self.pins)


TestSlotsMachine = SlotsMachine.TestCase
TestSlotsMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
