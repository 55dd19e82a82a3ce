"""An adapter loader without store, GPU or threads: packs are sizes, and copying fills a range with the
adapter's name.

It holds its caller to the port's contract: a call out of turn, or a range that overlaps another, raises
AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from executor.control.loader import Copied, Granted, LoaderEvent, LoadFailed, Retire
from executor.control.request import Code


@dataclass(frozen=True, slots=True)
class SlotRow:
    """What a slot shows: an adapter and where its pack stands."""

    digest: str
    unit_offset: int
    units: int


class ArithmeticLoader:
    """`packs` gives known digests' units; others fail with NOT_FOUND. Events come `delay()` polls late."""

    def __init__(
        self,
        *,
        slots: int,
        units: int,
        packs: Mapping[str, int],
        delay: Callable[[], int] = lambda: 0,
    ) -> None:
        self.slot_rows: list[SlotRow | None] = [None] * slots
        self.asked: list[str] = []
        """Digests hinted at or acquired, the same one once in a row."""
        self.retired_digests: list[str] = []
        self._packs = packs
        self._delay = delay
        self._pool = np.full(units, -1, np.int64)
        self._numbers: dict[str, int] = {}
        self._state: dict[str, str] = {}
        self._copies: dict[str, tuple[int, SlotRow]] = {}
        self._events: list[tuple[int, LoaderEvent]] = []

    @property
    def held(self) -> int:
        """Digests that are acquired and not released."""
        return len(self._state)

    def prefetch(self, digest: str) -> None:
        self._ask(digest)

    def _ask(self, digest: str) -> None:
        if self.asked[-1:] != [digest]:
            self.asked.append(digest)

    def acquire(self, digest: str) -> None:
        assert digest not in self._state, f"{digest} is acquired while {self._state.get(digest)}"
        self._ask(digest)
        self._state[digest] = "acquired"
        if digest in self._packs:
            self._later(Granted(digest=digest, units=self._packs[digest]))
        else:
            message = f"adapter {digest} is not known: load it first"
            self._later(
                LoadFailed(digest=digest, code=Code.NOT_FOUND, reason="ADAPTER_NOT_FOUND", message=message)
            )

    def copy(self, digest: str, unit_offset: int, slot: int) -> None:
        assert self._state.get(digest) == "granted", f"{digest} is copied while {self._state.get(digest)}"
        self._state[digest] = "copying"
        row = SlotRow(digest, unit_offset, max(self._packs[digest], 1))
        for other in self.slot_rows:
            if other is not None:
                end, other_end = unit_offset + row.units, other.unit_offset + other.units
                assert end <= other.unit_offset or other_end <= unit_offset, f"{digest} overlaps {other}"
        self._pool[unit_offset : unit_offset + row.units] = self._number(digest)
        self._copies[digest] = slot, row
        self._later(Copied(digest=digest))

    def install(self, slot: int, digest: str) -> None:
        assert self._state.get(digest) == "copied", f"{digest} is installed while {self._state.get(digest)}"
        self._state[digest] = "installed"
        copied_for, row = self._copies.pop(digest)
        assert copied_for == slot, f"{digest} was copied for slot {copied_for}, not {slot}"
        assert self.slot_rows[slot] is None, f"slot {slot} is installed twice"
        self.slot_rows[slot] = row

    def clear(self, slot: int) -> None:
        assert self.slot_rows[slot] is not None, f"slot {slot} is cleared twice"
        self.slot_rows[slot] = None

    def release(self, digest: str) -> None:
        assert self._state.get(digest) in ("acquired", "granted", "installed"), (
            f"{digest} is released too early"
        )
        del self._state[digest]
        self._events = [
            (due, event) for due, event in self._events if event.digest != digest or isinstance(event, Retire)
        ]

    def retired(self, digest: str) -> None:
        self.retired_digests.append(digest)

    def poll(self) -> Sequence[LoaderEvent]:
        due = [event for delay, event in self._events if delay <= 0]
        self._events = [(delay - 1, event) for delay, event in self._events if delay > 0]
        for event in due:
            match event:
                case Granted():
                    self._state[event.digest] = "granted"
                case Copied():
                    self._state[event.digest] = "copied"
                case LoadFailed():
                    del self._state[event.digest]
                case Retire():
                    pass
        return due

    def retire(self, digest: str) -> None:
        """As if the last name that pointed to the digest were gone."""
        self._later(Retire(digest=digest))

    def holds(self, row: SlotRow) -> bool:
        """Whether the pool still has the pack that a slot row shows."""
        pack = self._pool[row.unit_offset : row.unit_offset + row.units]
        return bool((pack == self._number(row.digest)).all())

    def _number(self, digest: str) -> int:
        return self._numbers.setdefault(digest, len(self._numbers))

    def _later(self, event: LoaderEvent) -> None:
        self._events.append((self._delay(), event))
