"""Where room for a pack comes from when no hole is large enough. Pure decisions over ranges of bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Range(Generic[T]):
    """Bytes from `start` to `end` that something occupies.

    `worth` counts what would be lost with an evictable one; None is not evictable.
    """

    item: T
    start: int
    end: int
    worth: float | None
    is_movable: bool = False


def cheapest_window(ranges: Sequence[Range[T]], start: int, end: int, size: int) -> list[T] | None:
    """The neighbours to evict, of least summed worth, that leave a hole of `size` between `start` and `end`.

    Args:
        ranges: what is occupied, by ascending start.

    Returns:
        None when evicting everything that is evictable would not do.
    """
    best: list[T] | None = None
    best_worth = float("inf")
    first, worth = 0, 0.0
    left = start
    for position, range_ in enumerate(ranges):
        if range_.worth is None:
            first, worth, left = position + 1, 0.0, range_.end
            continue
        worth += range_.worth
        right = ranges[position + 1].start if position + 1 < len(ranges) else end
        # Drop from the left what is not needed for a hole that ends at `right`.
        while first < position and right - ranges[first].end >= size:
            worth -= ranges[first].worth or 0.0
            left = ranges[first].end
            first += 1
        if right - left >= size and worth < best_worth:
            best_worth = worth
            best = [taken.item for taken in ranges[first : position + 1]]
    return best


@dataclass(frozen=True, kw_only=True, slots=True)
class Move(Generic[T]):
    item: T
    start: int


def compaction(ranges: Sequence[Range[T]], start: int, end: int, size: int) -> list[Move[T]] | None:
    """How the movable ranges slide down, once all that is evictable is gone, to leave a hole of `size`.

    Returns:
        Moves in the order in which to make them, each into bytes that are free or its own by then; None when
        no hole would be large enough.
    """
    moves: list[Move[T]] = []
    position, largest = start, 0
    for range_ in ranges:
        if range_.worth is not None:
            continue
        if range_.is_movable:
            if range_.start != position:
                moves.append(Move(item=range_.item, start=position))
            position += range_.end - range_.start
        else:
            largest = max(largest, range_.start - position)
            if largest >= size:
                return moves
            position = range_.end
    return moves if max(largest, end - position) >= size else None
