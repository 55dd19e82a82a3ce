"""The engine's port to adapters: leases from the store and copies into the pool, none of it on the engine's
thread.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic

import grpc

from executor.adapters.arena_view import ArenaView, StalePackError
from executor.adapters.lease_client import Lease, LeaseClient
from executor.adapters.manifest import UNIT_BYTES
from executor.adapters.pool import Pool, Row
from executor.control.loader import Copied, Granted, LoaderEvent, LoadFailed, Retire
from executor.control.request import Code
from rpc.errors import LorikeetError, code_number, failed_precondition, internal, unavailable

log = logging.getLogger(__name__)

_COPY_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class _Report(Generic[Row]):
    """An event on its way to the engine; dropped there when `load` is no longer the digest's current one."""

    event: LoaderEvent
    load: int | None = None
    row: Row | None = None


class _Load:
    """One acquire, from its start to Copied or to its end otherwise. Loop thread only."""

    def __init__(self, number: int, digest: str, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        self.digest = digest
        self.granted_bytes: int | None = None
        self.place: asyncio.Future[int] = loop.create_future()
        self.task: asyncio.Task[None] | None = None


class StoreLoader(Generic[Row]):
    """Implements `executor.control.loader.AdapterLoader` with packs of the adapter store.

    The port's methods come from the engine's thread and hand over to the event loop; reports come back
    through a queue that holds at most a few entries per adapter, and `wake` tells the engine. Bytes are
    copied and slots' rows prepared by `copier`'s one thread: the engine only shows them.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        client: LeaseClient,
        pool: Pool[Row],
        copier: Executor,
        wake: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._client = client
        self._pool = pool
        self._copier = copier
        self._wake = wake
        self._numbers = itertools.count(1)
        self._reports: deque[_Report[Row]] = deque()
        # The engine's thread owns these two.
        self._current: dict[str, int] = {}
        self._rows: dict[str, Row] = {}
        # The loop's thread owns this one.
        self._loads: dict[int, _Load] = {}

    async def run(self) -> None:
        """Keeps the store's stream up until cancelled; then ends all loads."""
        try:
            await self._client.run(self._on_retire, self._on_map)
        finally:
            for load in list(self._loads.values()):
                if load.task is not None:
                    load.task.cancel()

    # The port; engine's thread.

    def prefetch(self, digest: str) -> None:
        self._loop.call_soon_threadsafe(self._client.prefetch, digest)

    def acquire(self, digest: str) -> None:
        number = self._current[digest] = next(self._numbers)
        self._loop.call_soon_threadsafe(self._start, number, digest)

    def copy(self, digest: str, unit_offset: int, slot: int) -> None:
        self._loop.call_soon_threadsafe(self._place, self._current[digest], unit_offset)

    def install(self, slot: int, digest: str) -> None:
        self._pool.install_slot(slot, self._rows[digest])

    def clear(self, slot: int) -> None:
        self._pool.clear_slot(slot)

    def release(self, digest: str) -> None:
        number = self._forget(digest)
        self._loop.call_soon_threadsafe(self._drop, number)

    def retired(self, digest: str) -> None:
        self._loop.call_soon_threadsafe(self._client.retired, digest)

    def poll(self) -> Sequence[LoaderEvent]:
        events: list[LoaderEvent] = []
        while self._reports:
            report = self._reports.popleft()
            event = report.event
            if report.load is not None and self._current.get(event.digest) != report.load:
                continue
            if isinstance(event, LoadFailed):
                self._forget(event.digest)
            elif isinstance(event, Copied) and report.row is not None:
                self._rows[event.digest] = report.row
            events.append(event)
        return events

    def _forget(self, digest: str) -> int:
        self._rows.pop(digest, None)
        return self._current.pop(digest)

    # Below: the loop's thread.

    def _start(self, number: int, digest: str) -> None:
        load = self._loads[number] = _Load(number, digest, self._loop)
        load.task = self._loop.create_task(self._run(load))
        # Not at the end of `_run`: a task that is cancelled before its first turn never gets there.
        load.task.add_done_callback(lambda _: self._loads.pop(number))

    def _place(self, number: int, unit_offset: int) -> None:
        load = self._loads.get(number)
        if load is not None and not load.place.done():
            load.place.set_result(unit_offset)

    def _drop(self, number: int) -> None:
        load = self._loads.get(number)
        if load is not None and load.task is not None:
            load.task.cancel()

    def _on_retire(self, digest: str) -> None:
        self._post(_Report(Retire(digest=digest)))

    async def _on_map(self, view: ArenaView) -> None:
        await self._loop.run_in_executor(self._copier, self._pool.register, view.memory)

    def _post(self, report: _Report[Row]) -> None:
        self._reports.append(report)
        self._wake()

    async def _run(self, load: _Load) -> None:
        try:
            row = await self._bring(load)
            self._post(_Report(Copied(digest=load.digest), load.number, row))
        except LorikeetError as error:
            self._post(_Report(_failure(load.digest, error), load.number))
        except Exception:
            log.exception("loading adapter %s failed", load.digest)
            error = internal("ADAPTER_LOAD", "loading the adapter failed; the executor's log says why")
            self._post(_Report(_failure(load.digest, error), load.number))

    async def _bring(self, load: _Load) -> Row:
        """Leases, waits for a place, copies; again when the store moved the pack meanwhile.

        The row comes from the thread that copies, so that a load given up never writes into its successor's
        range.
        """
        for _ in range(_COPY_ATTEMPTS):
            async with self._client.lease(load.digest) as lease:
                size = lease.manifest.total_bytes
                if load.granted_bytes is None:
                    load.granted_bytes = size
                    self._post(_Report(Granted(digest=load.digest, units=size // UNIT_BYTES), load.number))
                elif size != load.granted_bytes:
                    raise internal(
                        "PACK_SIZE", f"the pack's size changed from {load.granted_bytes} to {size}"
                    )
                unit_offset = await asyncio.shield(load.place)
                try:
                    return await self._copy(lease, unit_offset)
                except StalePackError as error:
                    log.info("pack %s moved while it was copied: %s", load.digest, error)
        raise unavailable(
            "ADAPTER_KEEPS_MOVING",
            "the adapter store is short of memory and moved the pack again and again: retry",
        )

    async def _copy(self, lease: Lease, unit_offset: int) -> Row:
        pack = await self._client.fetch(lease) if lease.view is None else None
        return await self._loop.run_in_executor(self._copier, _copy, lease, self._pool, unit_offset, pack)


def _copy(lease: Lease, pool: Pool[Row], unit_offset: int, fetched: bytearray | None) -> Row:
    """On the copier's thread."""
    if fetched is not None:
        pool.write(unit_offset, fetched)
    else:
        view = lease.view
        assert view is not None
        view.check(lease.header_offset, lease.generation)
        pool.write(unit_offset, view.pack(lease.pack_offset, lease.manifest.total_bytes).data)
        view.check(lease.header_offset, lease.generation)
    try:
        return pool.prepare(unit_offset, lease.manifest, lease.places)
    except ValueError as error:
        raise failed_precondition("ADAPTER_DOES_NOT_FIT_BASE", str(error)) from error


def _failure(digest: str, error: LorikeetError) -> LoadFailed:
    try:
        code = Code(code_number(error.code))
    except ValueError:
        code = Code.UNAVAILABLE if error.code is grpc.StatusCode.CANCELLED else Code.INTERNAL
    return LoadFailed(digest=digest, code=code, reason=error.reason, message=error.message)
