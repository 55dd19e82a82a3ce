import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.control.ranges import RangeAllocator


def test_first_fit_and_coalescing():
    ranges = RangeAllocator(100)
    assert [ranges.allocate(size) for size in (30, 30, 30)] == [0, 30, 60]
    assert ranges.allocate(11) is None
    ranges.release(0, 30)
    ranges.release(60, 30)
    assert ranges.allocate(35) == 60, "the gap at 60 was joined with the end"
    ranges.release(30, 30)
    assert ranges.allocate(60) == 0, "both neighbours were joined"
    assert ranges.free_units == 5


def test_fits_counts_ranges_that_are_about_to_leave():
    ranges = RangeAllocator(10)
    for _ in range(5):
        ranges.allocate(2)
    assert not ranges.fits(4, [(0, 2), (4, 2)]), "not neighbours"
    assert ranges.fits(4, [(4, 2), (2, 2)])
    assert not ranges.fits(2), "a probe changes nothing"


def test_releasing_twice_is_a_bug():
    ranges = RangeAllocator(10)
    ranges.allocate(4)
    ranges.release(0, 4)
    with pytest.raises(AssertionError, match="twice"):
        ranges.release(0, 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 24)), max_size=60))
def test_agrees_with_a_bitmap(operations: list[tuple[bool, int]]):
    ranges, bitmap = RangeAllocator(64), [False] * 64
    taken: list[tuple[int, int]] = []
    for allocate, number in operations:
        if allocate:
            gaps = [at for at in range(65 - number) if not any(bitmap[at : at + number])]
            assert ranges.fits(number) == bool(gaps)
            offset = ranges.allocate(number)
            assert offset == (gaps[0] if gaps else None)
            if offset is not None:
                taken.append((offset, number))
                bitmap[offset : offset + number] = [True] * number
        elif taken:
            offset, size = taken.pop(number % len(taken))
            ranges.release(offset, size)
            bitmap[offset : offset + size] = [False] * size
        ranges.check_integrity(taken)
