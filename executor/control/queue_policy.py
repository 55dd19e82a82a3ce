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

_Mask = NDArray[np.bool_]
_Numbers = NDArray[np.intp]
"""Of the accounts to choose from, which are few among all: each look of numpy at an array takes a while."""


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
        (among,) = eligible.nonzero()
        overdue = _overdue(accounts, among, self._max_bypass)
        if len(overdue):
            return _oldest(accounts, overdue)
        served = accounts.served[among]
        return _oldest(accounts, among[served == served[served.argmin()]])


class PackPolicy:
    """Adapters that already run, then those that are resident, so that a batch mixes few of them."""

    def __init__(self, max_bypass: int = 64) -> None:
        self._max_bypass = max_bypass

    def choose(self, accounts: Accounts, eligible: _Mask) -> int:
        (among,) = eligible.nonzero()
        is_resident = accounts.residency[among] == int(Residency.RESIDENT)
        running = among[accounts.running[among] > 0]
        for preferred in (_overdue(accounts, among, self._max_bypass), running, among[is_resident]):
            if len(preferred):
                return _oldest(accounts, preferred)
        return _oldest(accounts, among)


def _overdue(accounts: Accounts, among: _Numbers, max_bypass: int) -> _Numbers:
    return among[accounts.head_since[among] < accounts.admissions - max_bypass]


def _oldest(accounts: Accounts, among: _Numbers) -> int:
    return int(among[accounts.head_arrival[among].argmin()])


QUEUE_POLICIES: dict[str, type[FairPolicy] | type[PackPolicy]] = {"fair": FairPolicy, "pack": PackPolicy}
