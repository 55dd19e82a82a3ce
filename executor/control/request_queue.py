"""Requests that wait: in order of arrival within each account."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from executor.control.accounts import Accounts
from executor.control.sequence import Sequence


class RequestQueue:
    """Owns the waiting sequences, and the columns of `Accounts` that describe them."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._lines: dict[int, OrderedDict[Sequence, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, sequence: Sequence) -> None:
        """Puts a sequence where its arrival says: new ones last, preempted ones near the front."""
        account = sequence.account
        line = self._lines.setdefault(account, OrderedDict())
        earlier: list[Sequence] = []
        newest = next(reversed(line), None)
        line[sequence] = None
        if newest is not None and newest.arrival > sequence.arrival:
            for other in line:
                if other.arrival >= sequence.arrival:
                    break
                earlier.append(other)
            line.move_to_end(sequence, last=False)
            for other in reversed(earlier):
                line.move_to_end(other, last=False)
        self._size += 1
        self._accounts.waiting[account] += 1
        self._update_head(account)

    def head(self, account: int) -> Sequence:
        """The account's oldest waiting sequence; there is one."""
        return next(iter(self._lines[account]))

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands."""
        account = sequence.account
        line = self._lines[account]
        del line[sequence]
        if not line:
            del self._lines[account]
        self._size -= 1
        self._accounts.waiting[account] -= 1
        self._update_head(account)

    def of(self, account: int) -> Iterator[Sequence]:
        """The account's waiting sequences, oldest first. The queue must not change meanwhile."""
        return iter(self._lines.get(account, ()))

    def _update_head(self, account: int) -> None:
        accounts = self._accounts
        if not accounts.waiting[account]:
            accounts.head_arrival[account] = -1
            return
        arrival = self.head(account).arrival
        if accounts.head_arrival[account] != arrival:
            accounts.head_arrival[account] = arrival
            accounts.head_since[account] = accounts.admissions

    def check_integrity(self) -> None:
        for account, line in self._lines.items():
            arrivals = [sequence.arrival for sequence in line]
            assert arrivals == sorted(arrivals), f"account {account} is out of order"
            assert len(line) == self._accounts.waiting[account] > 0
            assert arrivals[0] == self._accounts.head_arrival[account]
            assert all(sequence.account == account for sequence in line)
        assert self._size == sum(len(line) for line in self._lines.values()) == self._accounts.waiting.sum()
