"""The way of an adapter into the store: copied, checked, packed, kept."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from adapter_store.concurrency import KeyedLock, Workers
from adapter_store.counters import Counters, Stopwatch
from adapter_store.crew import Crew
from adapter_store.formats.layout import PackLayout
from adapter_store.formats.reading import CheckedAdapter, OpenedAdapter, check_adapter, open_adapter
from adapter_store.outside_reads import Moved, OutsideReads
from adapter_store.reports import report_version
from adapter_store.sources import SourceReader
from adapter_store.sources.reader import EarlyReader
from adapter_store.tiers.arena import Arena
from adapter_store.tiers.disk import DiskTier
from adapter_store.tiers.holds import Holds
from adapter_store.tiers.pack import ArenaPack
from adapter_store.tiers.warm import WarmTier
from adapter_store.versions import Version
from adapter_store.watchers import Progress, Stage

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 0.05


class Loader:
    """Runs the stages on worker threads. Belongs to the event loop.

    Args:
        workers: threads, one of which each load has.
        reads: threads that copy folders.
        fetchers: threads that bring what is remote: a server that stalls holds up none of the others.
        crew: helps them.
        max_bytes: largest adapter.
        make_room: asked when the disk's quota is full, with the bytes that are missing; frees some of them,
            or returns False.
    """

    def __init__(
        self,
        *,
        disk: DiskTier,
        arena: Arena,
        warm: WarmTier,
        workers: Workers,
        reads: OutsideReads,
        fetchers: Workers,
        crew: Crew,
        holds: Holds,
        counters: Counters,
        max_bytes: int,
        make_room: Callable[[int], Awaitable[bool]] | None = None,
    ) -> None:
        self._disk = disk
        self._arena = arena
        self._warm = warm
        self._workers = workers
        self._reads = reads
        self._fetchers = fetchers
        self._crew = crew
        self._holds = holds
        self._counters = counters
        self._max_bytes = max_bytes
        self._make_room = make_room
        # Two loads of the same content, under two names, must not write the same files at once.
        self._digests = KeyedLock()

    @asynccontextmanager
    async def load(
        self, reader: SourceReader, layout: PackLayout, report: Callable[[Progress], None]
    ) -> AsyncIterator[Version]:
        """Brings an adapter into memory, then onto the disk, and keeps it for as long as the block takes.

        Its pack can be leased from the report of Stage.PUBLISH on; the block begins when it is durable.

        Args:
            reader: of where it lies.
            layout: what it must fit.
            report: called on the event loop as the load goes on.

        Raises:
            LorikeetError: what is wrong with the source or the adapter, and what to do.
        """
        clock = Stopwatch(self._counters)
        staged, is_kept = self._disk.stage(), False
        try:
            with clock.stage("copy"):
                notes, opening = await self._copy(reader, staged, layout, _throttled(Stage.COPY, report))
            with clock.stage("open"):
                opened = await opening
            with clock.stage("fill"):
                checked, pack = await self._check(opened, layout, _throttled(Stage.VALIDATE, report))
            packed = checked.manifest.total_bytes
            report(Progress(stage=Stage.PACK, bytes_done=packed, bytes_total=packed))
            with self._holds.hold(checked.digest):
                if pack is not None:
                    self._warm.arrive(pack, checked, clock.seconds)
                report(Progress(stage=Stage.PUBLISH, bytes_done=0, bytes_total=0))
                async with self._digests.hold(checked.digest):
                    with clock.stage("keep"):
                        await self._keep(staged, checked.digest)
                is_kept = True
                self._counters.disk.loads += 1
                log.info("%s is %s (%s)", reader.source, checked.digest, clock)
                yield await self._workers.run(report_version, checked, notes, crew=self._crew)
        finally:
            if not is_kept:
                await self._workers.run(self._disk.discard, staged)

    async def _copy(
        self,
        reader: SourceReader,
        staged: Path,
        layout: PackLayout,
        progress: Callable[[int, int], None],
    ) -> tuple[tuple[str, ...], Awaitable[OpenedAdapter]]:
        """Copies, and begins to read the headers: already meanwhile, where the source has them first."""
        if not isinstance(reader, EarlyReader):
            copiers = self._fetchers if reader.is_remote else self._workers
            notes = await copiers.run(reader.copy, staged, self._max_bytes, progress)
            return notes, self._workers.run(open_adapter, staged, layout)
        loop = asyncio.get_running_loop()
        early: list[asyncio.Task[OpenedAdapter]] = []

        def begin() -> None:
            early.append(asyncio.ensure_future(self._workers.run(open_adapter, staged, layout)))
            early[0].add_done_callback(_see)

        def copy(moved: Moved) -> tuple[str, ...]:
            def told(done: int, total: int) -> None:
                moved()
                progress(done, total)

            return reader.copy_headers_first(
                staged, self._max_bytes, told, lambda: loop.call_soon_threadsafe(begin)
            )

        notes = await self._reads.run(reader.place, copy)
        return notes, early[0] if early else self._workers.run(open_adapter, staged, layout)

    async def _check(
        self, opened: OpenedAdapter, layout: PackLayout, progress: Callable[[int, int], None]
    ) -> tuple[CheckedAdapter, ArenaPack | None]:
        """Checks every value, and packs on the way where there is room."""
        self._arena.check_capacity(opened.pack_bytes)
        pack = self._warm.begin_unnamed(layout.digest, opened.pack_bytes)
        try:
            return await self._workers.run(self._fill, opened, pack, progress), pack
        except Exception:
            # Not when cancelled: the thread goes on writing then, and the room stays its own.
            if pack is not None:
                self._warm.abandon(pack)
            raise

    def _fill(
        self, opened: OpenedAdapter, pack: ArenaPack | None, progress: Callable[[int, int], None]
    ) -> CheckedAdapter:
        if pack is None:
            return check_adapter(opened, crew=self._crew, progress=progress)
        with self._arena.view(pack) as view:
            return check_adapter(opened, view, crew=self._crew, progress=progress)

    async def _keep(self, staged: Path, digest: str) -> None:
        while missing := await self._workers.run(self._commit_if_room, staged, digest):
            if self._make_room is None or not await self._make_room(missing):
                await self._workers.run(self._disk.commit_object, staged, digest)
                return

    def _commit_if_room(self, staged: Path, digest: str) -> int:
        """Returns how many bytes of room are missing; 0 once the object is there. One hop to a thread."""
        missing = self._disk.missing_bytes(staged, digest)
        if not missing:
            self._disk.commit_object(staged, digest)
        return missing


def _throttled(stage: Stage, report: Callable[[Progress], None]) -> Callable[[int, int], None]:
    """A progress callback for a worker thread; reports on the loop, at the end and now and then."""
    loop = asyncio.get_running_loop()
    next_report = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal next_report
        now = time.monotonic()
        if now >= next_report or done >= total:
            next_report = now + _SECONDS_BETWEEN_REPORTS
            loop.call_soon_threadsafe(report, Progress(stage=stage, bytes_done=done, bytes_total=total))

    return progress


def _see(task: asyncio.Task[OpenedAdapter]) -> None:
    # A copy that fails says why: nobody asks any more what its headers were.
    if not task.cancelled():
        task.exception()
