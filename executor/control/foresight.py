"""Adapters that were hinted at and that no request asks for yet: brought in while nobody is in their way.

A hint goes to the store at once. To the pool an adapter comes only while no request waits for another one,
into free room or in place of what is worth less and has no request at all; where a request finds no lease
or no room, hints give way.
"""

from __future__ import annotations

import numpy as np

from executor.control.accounts import Accounts
from executor.control.request import BASE_DIGEST
from executor.control.residency import Residency
from executor.control.slots import AdapterSlots

_MOST_HINTS = 32


class Foresight:
    """Owns the hints: `_hinted` wait to begin, `_coming` are leased for a hint and not copied yet."""

    def __init__(self, *, slots: AdapterSlots, accounts: Accounts, max_leases: int) -> None:
        self._slots = slots
        self._accounts = accounts
        self._max_coming = max(1, max_leases // 4)
        self._max_leases = max_leases
        self._hinted: dict[str, None] = {}
        self._coming: set[str] = set()

    def hint(self, digest: str) -> None:
        """A request for this digest is likely to come. Of too many hints the oldest are forgotten."""
        known = digest in self._hinted or self._accounts.find(digest) is not None
        if digest == BASE_DIGEST or known or self._slots.residency(digest) != Residency.ABSENT:
            return
        self._slots.prefetch(digest)
        self._hinted[digest] = None
        if len(self._hinted) > _MOST_HINTS:
            del self._hinted[next(iter(self._hinted))]

    def keeps(self, digest: str) -> bool:
        """Whether an adapter without requests is on its way for a hint."""
        return digest in self._coming

    def forget(self, digest: str) -> None:
        self._hinted.pop(digest, None)
        self._coming.discard(digest)

    def update(self) -> None:
        """Goes on with the hints, as far as requests let it. Once a plan, after they got what they can."""
        if not (self._hinted or self._coming):
            return
        for digest in (*self._hinted, *self._coming):
            if self._accounts.find(digest) is not None:
                self.forget(digest)
        accounts = self._accounts
        waiting = accounts.residency[accounts.waiting > 0]
        if np.isin(waiting, (Residency.ABSENT, Residency.STAGED)).any():
            self._give_way()
            return
        if not np.isin(waiting, (Residency.LEASING, Residency.COPYING)).any():
            self._place()
        self._lease()

    def _give_way(self) -> None:
        for digest in tuple(self._coming):
            if self._slots.residency(digest) in (Residency.LEASING, Residency.STAGED):
                self._slots.release(digest)
                self._coming.discard(digest)

    def _lease(self) -> None:
        while self._hinted and len(self._coming) < self._max_coming and self._slots.leases < self._max_leases:
            digest = next(iter(self._hinted))
            del self._hinted[digest]
            if self._slots.residency(digest) == Residency.ABSENT:
                self._slots.acquire(digest)
                self._coming.add(digest)

    def _place(self) -> None:
        for digest in tuple(self._coming):
            if self._slots.residency(digest) != Residency.STAGED:
                continue
            self._coming.discard(digest)
            idle = [a for a in self._slots.resident if self._accounts.find(a.digest) is None]
            victims = self._slots.window(digest, idle)
            worth = self._slots.worth([self._slots.staged(digest)])
            if victims is None or (victims and self._slots.worth(victims) >= worth):
                self._slots.release(digest)  # in the store's memory at least
            else:
                self._slots.place(digest, victims)

    def check_integrity(self) -> None:
        assert len(self._hinted) <= _MOST_HINTS
        assert len(self._coming) <= self._max_coming
        for digest in self._coming:
            assert self._slots.residency(digest) in (Residency.LEASING, Residency.STAGED), digest
