"""Which pack leaves the arena when room is needed."""

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Evictable(Protocol):
    """What a policy may know of a pack."""

    @property
    def last_used(self) -> int:
        """A tick that grows with every use of any pack."""
        ...

    @property
    def pack_bytes(self) -> int: ...


P = TypeVar("P", bound=Evictable)


class EvictionPolicy(Protocol):
    def victim(self, candidates: Iterable[P]) -> P:
        """Chooses one of at least one candidate; none of them is leased."""
        ...


class LeastRecentlyUsed:
    """Evicts the pack that nobody has asked for the longest."""

    def victim(self, candidates: Iterable[P]) -> P:
        return min(candidates, key=lambda pack: pack.last_used)
