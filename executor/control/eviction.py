"""What an adapter in the pool is worth, and which ones are given up for another.

An adapter needs a slot and one range of the pool. So victims are always neighbours: a *window* of
expendable adapters with the holes between and around them. Of all windows that make enough room the
cheapest goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from operator import itemgetter
from typing import Protocol

from executor.control.residency import Adapter

_REMEMBERED = 8192


class EvictionPolicy(Protocol):
    def used(self, digest: str) -> None:
        """A request begins to use the adapter."""
        ...

    def placed(self, digest: str) -> None:
        """The adapter has got its place in the pool."""
        ...

    def worth(self, adapter: Adapter) -> float:
        """What evicting it costs, not below 0. A probe; also for an adapter that is not in the pool yet."""
        ...

    def worth_of(self, worths: Sequence[float]) -> float:
        """What evicting several at once costs; grows with each of them."""
        ...

    def evicted(self, victims: Sequence[Adapter]) -> None:
        """These are given up."""
        ...


class LruEviction:
    """The least recently used. A window is as recent as its most recent adapter."""

    def used(self, digest: str) -> None:
        pass

    def placed(self, digest: str) -> None:
        pass

    def worth(self, adapter: Adapter) -> float:
        return adapter.last_used

    def worth_of(self, worths: Sequence[float]) -> float:
        return max(worths, default=0.0)

    def evicted(self, victims: Sequence[Adapter]) -> None:
        pass


class GdsfEviction:
    """Greedy-Dual-Size with frequency (Cherkasova, Improving WWW Proxies Performance with Greedy-Dual-Size-
    Frequency Caching Policy, 1998): an adapter's key is clock + frequency * cost / size, and the clock moves
    up to the keys of those evicted, so that what is not asked for any more ages.

    What a window loses is the sum of (key - clock) * size, each adapter's credit (Young, On-Line File
    Caching, 2002). The cost of a reload is `load_units` for the load as such and one per unit copied. An
    adapter's frequency outlives its stay, for the most recent 8,192 digests, and is halved every so often.
    """

    def __init__(self, load_units: int = 1 << 15, halve_every: int = 1 << 14) -> None:
        self._load_units = load_units
        self._halve_every = halve_every
        self._clock = 0.0
        self._frequency: dict[str, float] = {}
        self._placed_at: dict[str, float] = {}
        self._uses = 0

    def used(self, digest: str) -> None:
        # Taken out and put back, so that the dict is in the order of use.
        self._frequency[digest] = self._frequency.pop(digest, 0.0) + 1.0
        if digest in self._placed_at:
            self._placed_at[digest] = self._clock
        if len(self._frequency) > _REMEMBERED:
            del self._frequency[next(iter(self._frequency))]
        self._uses += 1
        if self._uses % self._halve_every == 0:
            for known in self._frequency:
                self._frequency[known] /= 2

    def placed(self, digest: str) -> None:
        self._placed_at[digest] = self._clock

    def worth(self, adapter: Adapter) -> float:
        aged = (self._clock - self._placed_at.get(adapter.digest, self._clock)) * adapter.units
        return max(self._credit(adapter) - aged, 0.0)

    def worth_of(self, worths: Sequence[float]) -> float:
        return sum(worths)

    def evicted(self, victims: Sequence[Adapter]) -> None:
        units = sum(adapter.units for adapter in victims)
        self._clock += sum(self.worth(adapter) for adapter in victims) / max(units, 1)
        for adapter in victims:
            self._placed_at.pop(adapter.digest, None)

    def _credit(self, adapter: Adapter) -> float:
        return self._frequency.get(adapter.digest, 0.0) * (self._load_units + adapter.units)


EVICTION_POLICIES: dict[str, type[GdsfEviction] | type[LruEviction]] = {
    "gdsf": GdsfEviction,
    "lru": LruEviction,
}


def cheapest(expendable: Iterable[Adapter], policy: EvictionPolicy) -> Adapter | None:
    """The one that costs least; where it makes enough room, no window costs less."""
    worths = ((policy.worth(adapter), adapter.unit_offset, adapter) for adapter in expendable)
    best = min(worths, key=itemgetter(0, 1), default=None)
    return None if best is None else best[2]


def cheapest_window(
    placed: Iterable[Adapter],
    expendable: Collection[str],
    *,
    units: int,
    pool_units: int,
    policy: EvictionPolicy,
) -> list[Adapter] | None:
    """Returns the neighbours, at least one, whose leaving makes a hole of `units` at the least cost; None
    where even all that are `expendable` (digests) would not.

    `placed` are all adapters that have a range of the pool. Exact: for every first victim the shortest run
    that is long enough is tried, and a longer one cannot cost less.
    """
    row = sorted(placed, key=lambda adapter: adapter.unit_offset)
    worths = [policy.worth(adapter) for adapter in row]
    best: list[Adapter] | None = None
    least = 0.0
    for first, adapter in enumerate(row):
        if adapter.digest not in expendable:
            continue
        begin = row[first - 1].unit_offset + row[first - 1].units if first else 0
        for last in range(first, len(row)):
            if row[last].digest not in expendable:
                break
            end = row[last + 1].unit_offset if last + 1 < len(row) else pool_units
            if end - begin >= units:
                cost = policy.worth_of(worths[first : last + 1])
                if best is None or cost < least:
                    best, least = row[first : last + 1], cost
                break
    return best
