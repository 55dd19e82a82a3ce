"""Which packs leave the arena when room is needed: those whose worth is least."""

from collections.abc import Mapping
from typing import Protocol


class Evictable(Protocol):
    """What a policy may know of a pack, and the one number that it keeps there."""

    # Set by the policy: the lowest leave first.
    worth: float

    @property
    def uses(self) -> int:
        """Since the pack came into the arena, its coming included."""
        ...

    @property
    def pack_bytes(self) -> int: ...

    @property
    def reload_seconds(self) -> float:
        """What bringing it back would cost."""
        ...


class EvictionPolicy(Protocol):
    def used(self, pack: Evictable) -> None:
        """Sets the worth of a pack that has just come or was asked for."""
        ...

    def evicted(self, pack: Evictable) -> None:
        """Hears of a pack that left to make room."""
        ...


class GreedyDualSizeFrequency:
    """Keeps what is asked for often, is slow to bring back and takes little room.

    worth = clock + uses * reload_seconds / bytes; the clock rises to the worth of what was evicted, so that
    old fame fades (Cherkasova 1998, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency
    caching policy").
    """

    def __init__(self) -> None:
        self._clock = 0.0

    def used(self, pack: Evictable) -> None:
        pack.worth = self._clock + pack.uses * pack.reload_seconds / max(1, pack.pack_bytes)

    def evicted(self, pack: Evictable) -> None:
        self._clock = max(self._clock, pack.worth)


class LeastRecentlyUsed:
    """Keeps what was asked for last."""

    def __init__(self) -> None:
        self._tick = 0.0

    def used(self, pack: Evictable) -> None:
        self._tick += 1
        pack.worth = self._tick

    def evicted(self, pack: Evictable) -> None:
        pass


POLICIES: Mapping[str, type[EvictionPolicy]] = {"gdsf": GreedyDualSizeFrequency, "lru": LeastRecentlyUsed}
