"""First-fit allocation of ranges, with coalescing. Pure bookkeeping."""

from bisect import bisect_left
from collections.abc import Iterator


class RangeAllocator:
    """Hands out non-overlapping ranges of `[start, end)`; sizes and offsets are multiples of `unit`."""

    def __init__(self, start: int, end: int, *, unit: int = 128) -> None:
        self._unit = unit
        self._start = -(-start // unit) * unit
        self._end = end // unit * unit
        if self._start >= self._end:
            raise ValueError(f"no room between {start} and {end}")
        # Free ranges by start, ascending; neighbours never touch, for they would be one.
        self._starts = [self._start]
        self._ends = [self._end]
        self._used: dict[int, int] = {}

    @property
    def capacity(self) -> int:
        return self._end - self._start

    @property
    def bounds(self) -> tuple[int, int]:
        """Start and end of all ranges together."""
        return self._start, self._end

    @property
    def used_bytes(self) -> int:
        return sum(self._used.values())

    def holes(self) -> Iterator[tuple[int, int]]:
        """(start, end) of each free range, ascending."""
        return zip(self._starts, self._ends, strict=True)

    def rounded(self, size: int) -> int:
        """The bytes that a range of `size` takes."""
        return -(-size // self._unit) * self._unit

    def allocate(self, size: int) -> int | None:
        """Takes the first hole that is large enough; None when there is none."""
        size = self.rounded(size)
        if size <= 0:
            raise ValueError(f"a range of {size} bytes")
        for index, (start, end) in enumerate(self.holes()):
            if end - start >= size:
                self._take(index, start, size)
                return start
        return None

    def reserve(self, start: int, size: int) -> bool:
        """Takes exactly this range; False when it is not entirely free."""
        size = self.rounded(size)
        index = bisect_left(self._ends, start + 1)
        if start % self._unit or size <= 0 or index == len(self._starts):
            return False
        if start < self._starts[index] or start + size > self._ends[index]:
            return False
        hole_start, hole_end = self._starts[index], self._ends[index]
        del self._starts[index], self._ends[index]
        for left, right in ((start + size, hole_end), (hole_start, start)):
            if left < right:
                self._starts.insert(index, left)
                self._ends.insert(index, right)
        self._used[start] = size
        return True

    def free(self, start: int) -> None:
        """Gives a range back. Raises KeyError for a range that is not allocated."""
        end = start + self._used.pop(start)
        index = bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] == end:
            end = self._ends[index]
            del self._starts[index], self._ends[index]
        if index > 0 and self._ends[index - 1] == start:
            self._ends[index - 1] = end
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)

    def check_integrity(self) -> None:
        """Asserts that used ranges and holes tile the whole, and that no two holes touch."""
        ranges = [(start, start + size, True) for start, size in self._used.items()]
        ranges += [(start, end, False) for start, end in self.holes()]
        position, was_hole = self._start, False
        for start, end, is_used in sorted(ranges):
            assert start == position < end, f"range {start}-{end} after {position}"
            assert is_used or not was_hole, f"two holes touch at {start}"
            assert start % self._unit == end % self._unit == 0, f"range {start}-{end} is not aligned"
            position, was_hole = end, not is_used
        assert position == self._end, f"ranges end at {position}, not {self._end}"

    def _take(self, index: int, start: int, size: int) -> None:
        self._used[start] = size
        self._starts[index] = start + size
        if self._starts[index] == self._ends[index]:
            del self._starts[index], self._ends[index]
