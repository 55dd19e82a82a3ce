"""The port through which the engine asks for adapters.

One adapter's way, seen from here:

    prefetch ─ acquire ─▶ Granted ─ copy ─▶ Copied ─ install ... clear ─ release
                  │                   │
                  └──▶ LoadFailed ◀───┘

Whoever implements this calls `Mailbox.wake` when `poll` has news, since the engine may be waiting. No call
blocks; all of them and `poll` come from the engine's thread. Work happens elsewhere and is reported by
`poll`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from executor.control.request import Code

UNIT_BYTES = 128
"""What the pool's ranges are counted in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The pack can be copied and takes `units` in the pool."""

    digest: str
    units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """The pack is in the pool, checked against a changed generation; its lease is given back already."""

    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """The adapter cannot be had, after whatever retries the loader makes. Nothing of it is held any more."""

    digest: str
    code: Code
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """No name points to this digest any more: drop its slot and its KV once its requests have ended."""

    digest: str


LoaderEvent = Granted | Copied | LoadFailed | Retire


class AdapterLoader(Protocol):
    """Brings packs into the GPU pool. Speaks of digests and units of `UNIT_BYTES`."""

    def prefetch(self, digest: str) -> None:
        """A request for this digest waits, or is likely to come. May be ignored."""
        ...

    def acquire(self, digest: str) -> None:
        """Begins to lease. Ends in Granted or LoadFailed, unless released before."""
        ...

    def copy(self, digest: str, unit_offset: int, slot: int) -> None:
        """Begins to copy the granted pack to the pool at unit_offset. Always ends in Copied or LoadFailed."""
        ...

    def install(self, slot: int, digest: str) -> None:
        """Makes the slot's row show the copied pack, from the next launch on. Comes between launches."""
        ...

    def clear(self, slot: int) -> None:
        """Makes the slot's row show nothing. No step in flight reads it. Comes between launches."""
        ...

    def release(self, digest: str) -> None:
        """Forgets the digest: gives a lease back or ends an acquire. Never comes between `copy` and its end.

        No event of the digest comes after this, other than Retire, until it is acquired again.
        """
        ...

    def retired(self, digest: str) -> None:
        """Answers a Retire: nothing of the digest is left here."""
        ...

    def poll(self) -> Sequence[LoaderEvent]:
        """Takes what has happened since the last call, oldest first. Never waits."""
        ...
