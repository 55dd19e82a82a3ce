"""Which adapters come to the GPU next, and which must leave for them.

Leases and room are given in the queue policy's order. The first adapter that finds no room is waited for:
nobody overtakes it, and where idle adapters do not make enough room, running ones are *drained*: no more of
their requests are admitted until they have left. So an adapter gets its slot within the time that the
running requests of others take, however busy those others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from executor.control.accounts import Accounts
from executor.control.config import SchedulerConfig
from executor.control.foresight import Foresight
from executor.control.loader import UNIT_BYTES, Copied, Granted, LoaderEvent, LoadFailed, Retire
from executor.control.page_cache import PageCache
from executor.control.queue_policy import QueuePolicy
from executor.control.request import BASE_DIGEST, Code
from executor.control.request_queue import RequestQueue
from executor.control.residency import Adapter, Residency
from executor.control.roster import Roster
from executor.control.slots import AdapterSlots


@dataclass(frozen=True, slots=True)
class _Victims:
    """Resident adapters by what it takes to make them leave; the busy ones with their accounts."""

    unwanted: list[Adapter]
    idle: list[Adapter]
    busy: list[tuple[int, Adapter]]

    def without(self, gone: Sequence[str]) -> _Victims:
        """Those that are left when idle ones have gone."""
        unwanted = [adapter for adapter in self.unwanted if adapter.digest not in gone]
        return _Victims(unwanted, [adapter for adapter in self.idle if adapter.digest not in gone], self.busy)


class Placement:
    """Drives `AdapterSlots` by what the accounts want, and keeps `Accounts.residency` and `draining` true."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        slots: AdapterSlots,
        accounts: Accounts,
        queue: RequestQueue,
        roster: Roster,
        cache: PageCache,
        policy: QueuePolicy,
        foresight: Foresight,
    ) -> None:
        self._config = config
        self._slots = slots
        self._accounts = accounts
        self._queue = queue
        self._roster = roster
        self._cache = cache
        self._policy = policy
        self._foresight = foresight
        # Who waits for what drains, and the state of the slots in which that was found to be the way.
        self._awaited: tuple[str, int] | None = None

    def handle(self, event: LoaderEvent) -> None:
        """Takes a report of the loader."""
        match event:
            case Granted():
                self._granted(event)
            case Copied():
                self._copied(event.digest)
            case LoadFailed():
                self._foresight.forget(event.digest)
                self._slots.failed(event.digest)
                self._sync(event.digest)
                self._fail_waiting(event.digest, event.code, event.reason, event.message)
            case Retire():
                self._foresight.forget(event.digest)
                self._slots.retire(event.digest)
                self._cache.drop(event.digest)

    def update(self) -> None:
        """Begins what can begin now. Once a plan, before admission."""
        for digest in self._slots.retiring:
            if self._accounts.find(digest) is None and self._slots.leave_retired(digest):
                self._cache.drop(digest)
        for adapter in tuple(self._slots.arriving):
            abandoned = self._accounts.find(adapter.digest) is None and not self._foresight.keeps(
                adapter.digest
            )
            if abandoned and adapter.residency < Residency.COPYING:
                self._slots.release(adapter.digest)
        if len(self._queue):
            self._lease()
            self._place()
        self._foresight.update()

    def _granted(self, event: Granted) -> None:
        self._slots.granted(event.digest, event.units)
        if event.units > self._slots.units:
            self._foresight.forget(event.digest)
            self._slots.release(event.digest)
            sizes = f"{event.units * UNIT_BYTES} bytes, the pool has {self._slots.units * UNIT_BYTES}"
            message = f"the adapter takes {sizes}: enlarge the executor's adapter pool, or use a lower rank"
            self._fail_waiting(event.digest, Code.FAILED_PRECONDITION, "ADAPTER_TOO_LARGE", message)
        self._sync(event.digest)

    def _copied(self, digest: str) -> None:
        self._slots.copied(digest)
        self._sync(digest)
        account = self._accounts.find(digest)
        if account is None:
            return
        self._accounts.quantum_start[account] = self._accounts.served[account]

    def _lease(self) -> None:
        accounts, room = self._accounts, self._config.max_leases - self._slots.leases
        if room <= 0:
            return
        absent = accounts.waiting_while(Residency.ABSENT)
        for _ in range(min(room, np.count_nonzero(absent))):
            account = self._policy.choose(accounts, absent)
            absent[account] = False
            self._slots.acquire(accounts.digest(account))
            accounts.residency[account] = Residency.LEASING

    def _place(self) -> None:
        accounts = self._accounts
        staged = accounts.waiting_while(Residency.STAGED)
        victims: _Victims | None = None
        while np.count_nonzero(staged):
            account = self._policy.choose(accounts, staged)
            digest = accounts.digest(account)
            if self._awaited == (digest, self._slots.changes):
                return
            victims = victims or self._victims()
            evicted = self._slots.place(digest, victims.unwanted)
            if evicted is None and victims.idle:
                evicted = self._slots.place(digest, victims.unwanted + victims.idle)
            if evicted is None:
                will_fit = self._drain_for(digest, victims)
                self._awaited = (digest, self._slots.changes) if will_fit else None
                return
            staged[account] = False
            victims = victims.without(evicted)
            for gone in (digest, *evicted):
                self._sync(gone)
        accounts.draining[:] = False

    def _victims(self) -> _Victims:
        """Nobody minds draining an adapter with no request waiting; others must have had their quantum, one
        token at least: adapters that push each other out before they are used would do so for ever.
        """
        accounts = self._accounts
        victims = _Victims([], [], [])
        had_quantum = accounts.served - accounts.quantum_start >= max(self._config.slot_quantum, 1)
        # As lists: to look at one number of an array takes longer than all else here.
        waiting, may_go = accounts.waiting.tolist(), (had_quantum | accounts.draining).tolist()
        for adapter in self._slots.resident:
            account = accounts.find(adapter.digest)
            wanted = account is not None and waiting[account] > 0
            if wanted and not may_go[account]:
                continue
            if adapter.pins:
                assert account is not None, f"{adapter.digest} is pinned without an account"
                victims.busy.append((account, adapter))
            else:
                (victims.idle if wanted else victims.unwanted).append(adapter)
        return victims

    def _drain_for(self, digest: str, victims: _Victims) -> bool:
        """Drains busy adapters until there will be room, those served most first; none, and False, if all are
        too few.
        """
        accounts = self._accounts
        draining, served = accounts.draining.tolist(), accounts.served.tolist()

        def cost(candidate: tuple[int, Adapter]) -> tuple[bool, int]:
            account, _ = candidate
            return not draining[account], -served[account]

        leaving = victims.unwanted + victims.idle
        busy: dict[str, int] = {}
        for account, adapter in sorted(victims.busy, key=cost):
            leaving.append(adapter)
            busy[adapter.digest] = account
            window = self._slots.window(digest, leaving)
            if window is not None:
                accounts.draining[:] = False
                accounts.draining[[busy[gone.digest] for gone in window if gone.digest in busy]] = True
                return True
        return False

    def _fail_waiting(self, digest: str, code: Code, reason: str, message: str) -> None:
        account = self._accounts.find(digest)
        if account is not None:
            for sequence in tuple(self._queue.of(account)):
                self._roster.fail(sequence, code, reason, message)

    def _sync(self, digest: str) -> None:
        account = self._accounts.find(digest)
        if account is not None:
            self._accounts.residency[account] = self._slots.residency(digest)

    def check_integrity(self) -> None:
        accounts = self._accounts
        for account in np.flatnonzero((accounts.waiting > 0) | (accounts.running > 0)).tolist():
            digest = accounts.digest(account)
            if digest != BASE_DIGEST:
                assert accounts.residency[account] == self._slots.residency(digest), "a stale residency"
        for adapter in self._slots.resident:
            account = accounts.find(adapter.digest)
            running = 0 if account is None else int(accounts.running[account])
            assert adapter.pins == running, f"{adapter.digest} has {adapter.pins} pins, {running} rows"
