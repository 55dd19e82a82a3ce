"""One account for each adapter that has requests here, the base included: what queue policies decide on.

Columns, so that choosing among thousands of adapters is a few array operations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from executor.control.request import BASE_DIGEST, Int32Array
from executor.control.residency import Residency

_REMEMBERED = 4096


class Accounts:
    """An account opens with an adapter's first request and closes with its last.

    Columns, all [capacity]: served int64, tokens computed for the adapter, which is its virtual time;
    waiting, running int32, requests in the queue and holding rows; head_arrival int64, arrival of the
    oldest waiting request; head_since int64, how many admissions there had been when it became the oldest;
    quantum_start int64, `served` when the adapter became resident or the account opened; residency int8, a
    copy of `AdapterSlots.residency` that `Placement` keeps up to date; draining bool, no request is
    admitted until the adapter has left its slot.
    """

    def __init__(self, capacity: int = 64) -> None:
        self.capacity = capacity
        self.admissions = 0
        self.digests: list[str | None] = [None] * capacity
        self.served = np.zeros(capacity, np.int64)
        self.waiting = np.zeros(capacity, np.int32)
        self.running = np.zeros(capacity, np.int32)
        self.head_arrival = np.zeros(capacity, np.int64)
        self.head_since = np.zeros(capacity, np.int64)
        self.quantum_start = np.zeros(capacity, np.int64)
        self.residency = np.zeros(capacity, np.int8)
        self.draining = np.zeros(capacity, np.bool_)
        self._numbers: dict[str, int] = {}
        self._free = list(range(capacity - 1, -1, -1))
        self._floor = 0
        self._ahead: dict[str, int] = {}

    def find(self, digest: str) -> int | None:
        return self._numbers.get(digest)

    def waiting_while(self, residency: Residency) -> NDArray[np.bool_]:
        """Which accounts have requests in the queue and their adapter there, bool[capacity]."""
        # As a plain number: numpy takes five times as long to look at a member of an enumeration.
        return (self.residency == int(residency)) & (self.waiting > 0)

    def digest(self, account: int) -> str:
        digest = self.digests[account]
        assert digest is not None, f"account {account} is closed"
        return digest

    def open(self, digest: str, residency: Residency) -> int:
        """Returns the adapter's account, opening it if need be.

        Virtual time as in the Virtual Token Counter (Sheng et al., Fairness in Serving Large Language
        Models, OSDI 2024): who was away cannot save up service, and starts no lower than the least served
        of those present; nor does leaving wipe out a lead.
        """
        known = self._numbers.get(digest)
        if known is not None:
            return known
        self._raise_floor()
        if not self._free:
            self._grow()
        account = self._free.pop()
        self._numbers[digest] = account
        self.digests[account] = digest
        self.served[account] = max(self._floor, self._ahead.pop(digest, 0))
        self.quantum_start[account] = self.served[account]
        self.residency[account] = Residency.RESIDENT if digest == BASE_DIGEST else residency
        self.draining[account] = False
        return account

    def close_if_idle(self, account: int) -> None:
        if self.waiting[account] or self.running[account]:
            return
        self._raise_floor()
        digest = self.digest(account)
        del self._numbers[digest]
        self.digests[account] = None
        self._free.append(account)
        if self.served[account] > self._floor:
            self._remember(digest, int(self.served[account]))

    def charge_rows(self, accounts: Int32Array) -> None:
        """One token for each entry of int32[n]."""
        self.served += np.bincount(accounts, minlength=self.capacity)

    def _raise_floor(self) -> None:
        (present,) = (self.waiting | self.running).nonzero()
        if len(present):
            served = self.served[present]
            self._floor = max(self._floor, int(served[served.argmin()]))  # `min` takes thrice as long

    def _remember(self, digest: str, served: int) -> None:
        if len(self._ahead) >= _REMEMBERED:
            leads = sorted(self._ahead.items(), key=lambda item: item[1], reverse=True)
            self._ahead = dict(item for item in leads[: _REMEMBERED // 2] if item[1] > self._floor)
        self._ahead[digest] = served

    def _grow(self) -> None:
        old, self.capacity = self.capacity, self.capacity * 2
        self._free.extend(range(self.capacity - 1, old - 1, -1))
        self.digests += [None] * old
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray):
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))

    def check_integrity(self) -> None:
        for account, digest in enumerate(self.digests):
            used = bool(self.waiting[account] or self.running[account])
            assert used == (digest is not None), f"account {account} is open for nobody, or closed too soon"
            if digest is not None:
                assert self._numbers[digest] == account
        assert len(self._numbers) + len(self._free) == self.capacity
