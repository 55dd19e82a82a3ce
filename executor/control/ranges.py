"""Contiguous ranges of the adapter pool, in units of 128 bytes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable


class RangeAllocator:
    """First fit with coalescing. Adapters are few and large, so a sorted list is the whole data structure."""

    def __init__(self, units: int) -> None:
        self.units = units
        self._free: list[tuple[int, int]] = [(0, units)] if units else []

    @property
    def free_units(self) -> int:
        return sum(size for _, size in self._free)

    def allocate(self, size: int) -> int | None:
        """Takes the first range of `size` > 0 units; returns its offset, or None if no gap is that large."""
        assert size > 0
        for number, (offset, gap) in enumerate(self._free):
            if gap >= size:
                self._free[number : number + 1] = [(offset + size, gap - size)] if gap > size else []
                return offset
        return None

    def release(self, offset: int, size: int) -> None:
        """Gives a range back, joining it with free neighbours."""
        self._free = _join(self._free, (offset, size))

    def fits(self, size: int, released: Iterable[tuple[int, int]] = ()) -> bool:
        """Probes whether `allocate(size)` would succeed after `released` ranges (offset, size) came back."""
        free = self._free
        for taken in released:
            free = _join(free, taken)
        return any(gap >= size for _, gap in free)

    def check_integrity(self, taken: Iterable[tuple[int, int]]) -> None:
        """`taken`, all ranges in use, and the free ones cover the pool; free neighbours are joined."""
        end = 0
        was_free = False
        for offset, size, free in sorted([(*r, True) for r in self._free] + [(*r, False) for r in taken]):
            assert size > 0
            assert offset == end, f"pool range at {offset} overlaps another or leaves a hole"
            assert not (free and was_free), f"free neighbours at {offset} are not joined"
            end, was_free = offset + size, free
        assert end == self.units, "pool ranges do not cover the pool"


def _join(free: list[tuple[int, int]], taken: tuple[int, int]) -> list[tuple[int, int]]:
    offset, size = taken
    at = bisect_left(free, (offset, 0))
    before, after = free[:at], free[at:]
    assert not before or before[-1][0] + before[-1][1] <= offset, "range released twice"
    assert not after or offset + size <= after[0][0], "range released twice"
    if before and before[-1][0] + before[-1][1] == offset:
        offset, size = before[-1][0], before[-1][1] + size
        before = before[:-1]
    if after and offset + size == after[0][0]:
        size += after[0][1]
        after = after[1:]
    return [*before, (offset, size), *after]
