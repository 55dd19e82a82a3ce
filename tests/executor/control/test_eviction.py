from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.control.eviction import EVICTION_POLICIES, GdsfEviction, LruEviction, cheapest_window
from executor.control.residency import Adapter
from executor.control.slots import AdapterSlots

every_policy = pytest.mark.parametrize("policy", sorted(EVICTION_POLICIES))


def adapter(digest: str, units: int = 10, offset: int = 0, last_used: int = 0) -> Adapter:
    return Adapter(digest, units=units, unit_offset=offset, last_used=last_used)


def used(policy: GdsfEviction, digest: str, times: int) -> None:
    for _ in range(times):
        policy.used(digest)


def test_gdsf_gives_up_what_is_asked_for_least():
    policy, often, seldom = GdsfEviction(), adapter("often"), adapter("seldom")
    used(policy, "often", 5)
    used(policy, "seldom", 1)
    assert policy.worth(often) > policy.worth(seldom) > 0


def test_gdsf_ages_the_large_ones_faster():
    policy, small, large = GdsfEviction(load_units=100), adapter("small", 10), adapter("large", 200)
    for digest in ("small", "large", "gone"):
        policy.placed(digest)
        used(policy, digest, 1)
    assert policy.worth(large) > policy.worth(small), "it costs more to load again"
    policy.evicted([adapter("gone", 50)])
    assert policy.worth(large) < policy.worth(small), "it takes the room of twenty"


def test_gdsf_remembers_how_often_an_adapter_was_asked_for():
    policy, known = GdsfEviction(), adapter("known")
    used(policy, "known", 9)
    policy.evicted([known])
    policy.placed("known")
    policy.placed("new")
    policy.used("new")
    assert policy.worth(known) > policy.worth(adapter("new"))


def test_gdsf_forgets_slowly_and_remembers_a_bounded_number():
    policy = GdsfEviction(halve_every=100)
    used(policy, "a", 100)
    assert policy.worth(adapter("a")) == pytest.approx(50 * ((1 << 15) + 10))
    for number in range(20_000):
        policy.used(str(number))
    assert len(policy._frequency) == 8192
    assert policy.worth(adapter("a")) == 0


def test_a_window_is_as_recent_as_its_most_recent_adapter():
    row = [adapter("a", 10, 0, 9), adapter("b", 10, 10, 1), adapter("c", 10, 20, 8), adapter("d", 10, 30, 7)]
    found = cheapest_window(row, {"a", "b", "c", "d"}, units=20, pool_units=40, policy=LruEviction())
    assert found is not None
    assert [victim.digest for victim in found] == ["b", "c"] or [v.digest for v in found] == ["c", "d"]
    assert max(victim.last_used for victim in found) == 8


def test_holes_beside_the_victims_count():
    row = [adapter("a", 10, 10), adapter("b", 10, 30)]
    found = cheapest_window(row, {"b"}, units=20, pool_units=40, policy=LruEviction())
    assert found is not None
    assert [victim.digest for victim in found] == ["b"]
    assert cheapest_window(row, {"b"}, units=21, pool_units=40, policy=LruEviction()) is None


class _Priced(GdsfEviction):
    def worth(self, adapter: Adapter) -> float:
        return adapter.last_used


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(0, 9), st.booleans()), max_size=8
    ),
    units=st.integers(1, 25),
)
def test_no_window_is_cheaper(parts: list[tuple[int, int, int, bool]], units: int):
    """Against all sets of neighbours, however large."""
    row: list[Adapter] = []
    end = 0
    for number, (hole, size, price, _) in enumerate(parts):
        row.append(adapter(str(number), size, end + hole, price))
        end += hole + size
    pool = end + 3
    expendable = {str(number) for number, part in enumerate(parts) if part[3]}
    costs: list[float] = []
    for first in range(len(row)):
        for last in range(first, len(row)):
            window = row[first : last + 1]
            begin = row[first - 1].unit_offset + row[first - 1].units if first else 0
            stop = row[last + 1].unit_offset if last + 1 < len(row) else pool
            if stop - begin >= units and all(victim.digest in expendable for victim in window):
                costs.append(sum(victim.last_used for victim in window))
    found = cheapest_window(row, expendable, units=units, pool_units=pool, policy=_Priced())
    assert (found is None) == (not costs)
    if found is not None:
        assert sum(victim.last_used for victim in found) == min(costs)
        assert {victim.digest for victim in found} <= expendable
        assert all(left.unit_offset < right.unit_offset for left, right in pairwise(found))


@every_policy
@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 64), min_size=1, max_size=30), data=st.data())
def test_whatever_fits_an_empty_pool_gets_in_once_the_others_are_idle(
    policy: str, sizes: list[int], data: st.DataObject
):
    slots = AdapterSlots(slots=4, units=64, eviction=EVICTION_POLICIES[policy]())
    for number, units in enumerate(sizes):
        digest = str(number)
        slots.acquire(digest)
        slots.granted(digest, units)
        assert slots.place(digest, list(slots.resident)) is not None
        slots.copied(digest)
        for _ in range(data.draw(st.integers(0, 3))):
            slots.pin(digest)
            slots.unpin(digest)
        slots.check_integrity()
