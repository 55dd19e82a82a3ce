"""Whose turn it is. A policy chooses an account; within an account the oldest request goes first.

A request that has seen enough others admitted since it came to the head of its line goes before everything
else, under every policy. So nobody starves, given that the chosen account is served or waited for, and
never passed over for want of pages or slots.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from executor.control.accounts import Accounts
from executor.control.residency import Residency

_NEVER = np.iinfo(np.int64).max
_Mask = NDArray[np.bool_]


class QueuePolicy(Protocol):
    def choose(self, accounts: Accounts, eligible: _Mask) -> int:
        """Returns one of the accounts in `eligible`, bool[capacity], at least one of which is true."""
        ...


class FairPolicy:
    """The adapter that was served least, counted in tokens; the older request where two are level.

    An adapter that waits keeps its count while those served overtake it. `max_bypass` is for the case that
    new adapters come faster than they can be served, each starting level with the least served.
    """

    def __init__(self, max_bypass: int = 256) -> None:
        self._max_bypass = max_bypass

    def choose(self, accounts: Accounts, eligible: _Mask) -> int:
        overdue = _overdue(accounts, eligible, self._max_bypass)
        if np.count_nonzero(overdue):
            return _oldest(accounts, overdue)
        served = np.where(eligible, accounts.served, _NEVER)
        return _oldest(accounts, served == served.min())


class PackPolicy:
    """Adapters that already run, then those that are resident, so that a batch mixes few of them."""

    def __init__(self, max_bypass: int = 64) -> None:
        self._max_bypass = max_bypass

    def choose(self, accounts: Accounts, eligible: _Mask) -> int:
        overdue = _overdue(accounts, eligible, self._max_bypass)
        for preferred in (overdue, accounts.running > 0, accounts.residency == int(Residency.RESIDENT)):
            if np.count_nonzero(eligible & preferred):
                return _oldest(accounts, eligible & preferred)
        return _oldest(accounts, eligible)


def _overdue(accounts: Accounts, eligible: _Mask, max_bypass: int) -> _Mask:
    return eligible & (accounts.admissions - accounts.head_since > max_bypass)


def _oldest(accounts: Accounts, eligible: _Mask) -> int:
    return int(np.where(eligible, accounts.head_arrival, _NEVER).argmin())


QUEUE_POLICIES: dict[str, type[FairPolicy] | type[PackPolicy]] = {"fair": FairPolicy, "pack": PackPolicy}
