"""The engine's port to adapters: leases from the store and copies into the pool, none of it on the engine's
thread.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic

import grpc

from executor.adapters.arena_view import ArenaView
from executor.adapters.bringing import Bringer, Errand
from executor.adapters.copier import Copier
from executor.adapters.lease_client import Lease, LeaseClient
from executor.adapters.pool import Pool, Row
from executor.control.loader import UNIT_BYTES, Copied, Granted, LoaderEvent, LoadFailed, Retire
from executor.control.request import Code
from rpc.errors import LorikeetError, code_number, internal, unavailable

log = logging.getLogger(__name__)

_COPY_ATTEMPTS = 4
_PATIENCE_SECONDS = 0.01


@dataclass(slots=True, eq=False)
class _Load:
    """One acquire, from its start to Copied or to its end otherwise.

    It is handed on: recalled by the engine's thread, or asked for, granted and given up by the loop's; from
    `copy` on the copier's, which hands it back to the loop where it has to be asked for again.
    """

    digest: str
    number: int = 0  # of its lease, 0 where it goes without
    lease: Lease | None = None
    granted_bytes: int | None = None
    slot: int = -1
    unit_offset: int = -1
    attempts: int = 0
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class _Report(Generic[Row]):
    """An event on its way to the engine; dropped there when `load` is no longer the digest's current one."""

    event: LoaderEvent
    load: _Load | None = None
    row: Row | None = None


class StoreLoader(Generic[Row]):
    """Implements `executor.control.loader.AdapterLoader` with packs of the adapter store.

    The port's methods come from the engine's thread and hand over to the event loop, which speaks with the
    store, and to the copier's thread, which brings bytes and slots' rows: the engine only shows them. Reports
    come back through a queue that holds at most a few entries per adapter, and `wake` tells the engine.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        client: LeaseClient,
        pool: Pool[Row],
        copier: Copier,
        wake: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._client = client
        self._pool = pool
        self._copier = copier
        self._bringer = Bringer(pool, copier, brought=self._brought, moved=self._moved, failed=self._fail)
        self._wake = wake
        self._reports: deque[_Report[Row]] = deque()
        # For the loop's thread, by any.
        self._calls: deque[Callable[[], None]] = deque()
        self._is_told = self._is_told_soon = False
        # The engine's thread owns these two.
        self._current: dict[str, _Load] = {}
        self._rows: dict[str, Row] = {}
        # The loop's thread owns this one.
        self._fetches: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Keeps the store's stream up until cancelled."""
        try:
            await self._client.run(self._on_retire, self._on_map)
        finally:
            for fetch in self._fetches:
                fetch.cancel()

    # The port; engine's thread.

    def prefetch(self, digest: str) -> None:
        if self._client.recall(digest) is None:
            self._tell(partial(self._client.prefetch, digest))

    def acquire(self, digest: str) -> None:
        load = self._current[digest] = _Load(digest)
        lease = self._client.recall(digest)
        if lease is None:
            self._tell(partial(self._ask, load))
            return
        self._tell_soon(partial(self._client.used, digest))
        self._granted(load, lease)

    def copy(self, digest: str, unit_offset: int, slot: int) -> None:
        load = self._current[digest]
        load.unit_offset, load.slot = unit_offset, slot
        assert load.lease is not None, "copied without a lease"
        self._hand_over(load, load.lease)

    def install(self, slot: int, digest: str) -> None:
        self._pool.install_slot(slot, self._rows[digest])

    def clear(self, slot: int) -> None:
        self._pool.clear_slot(slot)

    def release(self, digest: str) -> None:
        load = self._forget(digest)
        if not load.is_over:
            self._tell(partial(self._drop, load))

    def retired(self, digest: str) -> None:
        self._tell(partial(self._client.retired, digest))

    def poll(self) -> Sequence[LoaderEvent]:
        events: list[LoaderEvent] = []
        while self._reports:
            report = self._reports.popleft()
            event = report.event
            if report.load is not None and self._current.get(event.digest) is not report.load:
                continue
            if isinstance(event, LoadFailed):
                self._forget(event.digest)
            elif isinstance(event, Copied) and report.row is not None:
                self._rows[event.digest] = report.row
            events.append(event)
        return events

    def _forget(self, digest: str) -> _Load:
        self._rows.pop(digest, None)
        return self._current.pop(digest)

    def _tell(self, call: Callable[[], None]) -> None:
        """Has the loop's thread make a call, after those before it. From any thread: to wake the loop costs
        more than most calls, so that those of one moment wake it once.
        """
        self._calls.append(call)
        if not self._is_told:
            self._is_told = True
            self._loop.call_soon_threadsafe(self._make_calls)

    def _tell_soon(self, call: Callable[[], None]) -> None:
        """The same for a call that may wait for others, though not for long; none overtakes another."""
        self._calls.append(call)
        if not self._is_told_soon:
            self._is_told_soon = True
            self._loop.call_soon_threadsafe(self._loop.call_later, _PATIENCE_SECONDS, self._make_late_calls)

    # The loop's thread.

    def _make_late_calls(self) -> None:
        self._is_told_soon = False
        self._make_calls()

    def _make_calls(self) -> None:
        self._is_told = False  # first, so that who comes too late for this turn wakes the loop again
        while self._calls:
            call = self._calls.popleft()
            try:
                call()
            except Exception:
                log.exception("a call about adapters has failed")

    def _ask(self, load: _Load) -> None:
        load.attempts += 1
        load.number = self._client.ask(
            load.digest, partial(self._granted, load), lambda error: self._fail(load, error)
        )

    def _granted(self, load: _Load, lease: Lease) -> None:
        load.lease, size = lease, lease.manifest.total_bytes
        if load.granted_bytes is None:
            load.granted_bytes = size
            self._post(_Report(Granted(digest=load.digest, units=size // UNIT_BYTES), load))
        elif size != load.granted_bytes:
            before = load.granted_bytes
            self._fail(load, internal("PACK_SIZE", f"the pack's size changed from {before} to {size}"))
        else:
            self._hand_over(load, lease)

    def _ask_again(self, load: _Load) -> None:
        """The store moved the pack while it was copied."""
        self._client.end(load.number)
        if load.attempts < _COPY_ATTEMPTS:
            self._ask(load)
            return
        moving = "the adapter store is short of memory and moved the pack again and again: retry"
        self._fail(load, unavailable("ADAPTER_KEEPS_MOVING", moving))

    def _drop(self, load: _Load) -> None:
        load.is_over, load.lease = True, None
        self._client.end(load.number)

    def _begin_fetch(self, load: _Load, lease: Lease) -> None:
        fetch = self._loop.create_task(self._fetch(load, lease))
        self._fetches.add(fetch)
        fetch.add_done_callback(self._fetches.discard)

    async def _fetch(self, load: _Load, lease: Lease) -> None:
        try:
            pack = await self._client.fetch(lease)
        except Exception as error:
            self._fail(load, error)
        else:
            self._hand_over(load, lease, pack)

    def _on_retire(self, digest: str) -> None:
        self._post(_Report(Retire(digest=digest)))

    async def _on_map(self, view: ArenaView) -> None:
        await self._copier.run(partial(self._pool.register, view.memory))

    # The copier's thread.

    def _brought(self, load: _Load, row: Row) -> None:
        self._end(load, _Report(Copied(digest=load.digest), load, row))

    def _moved(self, load: _Load) -> None:
        self._tell(partial(self._ask_again, load))

    # All of them, or two.

    def _hand_over(self, load: _Load, lease: Lease, fetched: bytearray | None = None) -> None:
        """Has the copier's thread bring a pack, once its bytes are here."""
        if lease.view is None and fetched is None:
            self._tell(partial(self._begin_fetch, load, lease))
            return
        self._bringer.bring(Errand(load, lease, load.slot, load.unit_offset, fetched))

    def _fail(self, load: _Load, error: Exception) -> None:
        if not isinstance(error, LorikeetError):
            log.error("loading adapter %s failed", load.digest, exc_info=error)
            error = internal("ADAPTER_LOAD", "loading the adapter failed; the executor's log says why")
        self._end(load, _Report(_failure(load.digest, error), load))

    def _end(self, load: _Load, report: _Report[Row]) -> None:
        load.is_over, load.lease = True, None
        # Before the report: whatever the engine does then, such as to say that it has dropped a digest, comes
        # after the lease's end.
        if load.number:
            self._tell_soon(partial(self._client.end, load.number))
        self._post(report)

    def _post(self, report: _Report[Row]) -> None:
        self._reports.append(report)
        self._wake()


def _failure(digest: str, error: LorikeetError) -> LoadFailed:
    try:
        code = Code(code_number(error.code))
    except ValueError:
        code = Code.UNAVAILABLE if error.code is grpc.StatusCode.CANCELLED else Code.INTERNAL
    return LoadFailed(digest=digest, code=code, reason=error.reason, message=error.message)
