"""The way of an adapter into the store: copied, checked, packed, kept."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from adapter_store.catalog.versions import Version
from adapter_store.catalog.views import Progress, Stage
from adapter_store.concurrency.calls import KeyedLock
from adapter_store.concurrency.crew import Crew
from adapter_store.concurrency.outside_reads import Moved, OutsideReads
from adapter_store.concurrency.workers import Workers
from adapter_store.formats.layout import PackLayout
from adapter_store.formats.safetensors_files import SINGLE_NAME
from adapter_store.loads.arrival import Arrival, EarlyWork, NotWantedError
from adapter_store.loads.reports import report_version
from adapter_store.packs.filling import PackFiller
from adapter_store.packs.reading import CheckedAdapter, OpenedAdapter, identify_adapter, open_adapter
from adapter_store.packs.recipe import Recipe, recipe_of
from adapter_store.packs.scan_processes import ScanProcesses
from adapter_store.sources.reader import OutsideReader, SourceReader, is_outside
from adapter_store.tiers.arena import Arena
from adapter_store.tiers.counters import Counters, Stopwatch
from adapter_store.tiers.disk import DiskTier
from adapter_store.tiers.holds import Holds
from adapter_store.tiers.pack import ArenaPack
from adapter_store.tiers.warm import WarmTier

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 0.05


class _Filling(NamedTuple):
    """An adapter on its way, and its place in the arena: None where there is no room right now."""

    opened: OpenedAdapter
    filler: PackFiller
    pack: ArenaPack | None


class _Kept(NamedTuple):
    """A version that is durable, and how its pack is made again: None where it was here before."""

    version: Version
    recipe: Recipe | None


class Loader:
    """Runs the stages on worker threads. Belongs to the event loop.

    Args:
        workers: threads, one of which each load has.
        reads: threads that copy folders.
        fetchers: threads that bring what is remote: a server that stalls holds up none of the others.
        crew: helps them.
        scanners: help them with very many tensors.
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
        scanners: ScanProcesses | None = None,
        make_room: Callable[[int], Awaitable[bool]] | None = None,
    ) -> None:
        self._disk = disk
        self._arena = arena
        self._warm = warm
        self._workers = workers
        self._reads = reads
        self._fetchers = fetchers
        self._crew = crew
        self._scanners = scanners
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
                notes, filling = await self._copy(reader, staged, layout, _throttled(Stage.COPY, report))
            with clock.stage("fill"):
                checked = await self._finish(filling, _throttled(Stage.VALIDATE, report))
            packed = checked.manifest.total_bytes
            report(Progress(stage=Stage.PACK, bytes_done=packed, bytes_total=packed))
            with self._holds.hold(checked.digest):
                if filling.pack is not None:
                    self._warm.arrive(filling.pack, checked, clock.seconds)
                report(Progress(stage=Stage.PUBLISH, bytes_done=0, bytes_total=0))
                async with self._digests.hold(checked.digest):
                    with clock.stage("keep"):
                        version, recipe = await self._keep(staged, checked, notes)
                is_kept = True
                if recipe is not None:
                    self._warm.remember(checked.digest, layout, recipe)
                self._counters.disk.loads += 1
                log.info("%s is %s (%s)", reader.source, checked.digest, clock)
                yield version
        finally:
            if not is_kept:
                await self._workers.run(self._disk.discard, staged)

    async def _copy(
        self,
        reader: SourceReader,
        staged: Path,
        layout: PackLayout,
        progress: Callable[[int, int], None],
    ) -> tuple[tuple[str, ...], _Filling]:
        """Copies, and reads the headers; of a large file of a folder the rest, too, as it comes."""
        if is_outside(reader):
            return await self._copy_outside(reader, staged, layout, progress)
        copiers = self._fetchers if reader.is_remote else self._workers
        # As soon as its headers are there: what is refused need not come.
        look = cache(partial(open_adapter, staged, layout))
        notes = await copiers.run(reader.copy, staged, self._max_bytes, progress, look)
        return notes, self._begin(await self._workers.run(look), layout)

    async def _copy_outside(
        self,
        reader: OutsideReader,
        staged: Path,
        layout: PackLayout,
        progress: Callable[[int, int], None],
    ) -> tuple[tuple[str, ...], _Filling]:
        early = EarlyWork(partial(self._fill_what_comes, staged, layout))

        def copy(moved: Moved) -> tuple[tuple[str, ...], OpenedAdapter | None]:
            before = 0

            def told(done: int, total: int) -> None:
                nonlocal before
                moved(done - before)
                before = done
                progress(done, total)
                early.advance(done, total)

            notes = reader.copy(staged, self._max_bytes, told, early.call)
            return notes, None if early.is_called else open_adapter(staged, layout)

        try:
            notes, opened = await self._reads.run(reader.place, copy)
        except NotWantedError:
            await early.result()  # raises what its headers were refused for
            raise
        except Exception:
            early.end()
            with suppress(Exception):
                if (filling := await early.result()) is not None:
                    self._abandon(filling)
            raise
        finally:
            early.end()
        filling = await early.result() if opened is None else self._begin(opened, layout)
        assert filling is not None, "it was called before the copy ended"
        return notes, filling

    def _begin(self, opened: OpenedAdapter, layout: PackLayout) -> _Filling:
        """Takes room for the pack, where there is some. Raises LorikeetError where there never will be."""
        self._arena.check_capacity(opened.pack_bytes)
        pack = self._warm.begin_unnamed(layout.digest, opened.pack_bytes)
        return _Filling(opened, PackFiller(opened.plan, opened.files, crew=self._crew), pack)

    async def _fill_what_comes(self, staged: Path, layout: PackLayout, arrival: Arrival) -> _Filling:
        opened = await self._workers.run(_open_early, staged, layout)
        size = (staged / SINGLE_NAME).stat().st_size
        filling = self._begin(opened, layout)
        with self._abandoned_unless_filled(filling):
            while (missing := await arrival.next()) is not None:
                await self._workers.run(self._fill, filling, ready=size - missing)
        return filling

    async def _finish(self, filling: _Filling, progress: Callable[[int, int], None]) -> CheckedAdapter:
        """Checks every value, and packs on the way where there is room."""
        with self._abandoned_unless_filled(filling):
            return await self._workers.run(self._fill_rest, filling, progress)

    def _fill(
        self,
        filling: _Filling,
        *,
        ready: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if filling.pack is None:
            filling.filler.fill(None, ready=ready, progress=progress)
            return
        with self._arena.view(filling.pack) as view:
            look = self._scanners and self._scanners.look(filling.pack.pack_offset, view)
            filling.filler.fill(view, ready=ready, look=look, progress=progress)

    def _fill_rest(self, filling: _Filling, progress: Callable[[int, int], None]) -> CheckedAdapter:
        self._fill(filling, progress=progress)
        return identify_adapter(filling.opened, filling.filler.scans)

    @contextmanager
    def _abandoned_unless_filled(self, filling: _Filling) -> Iterator[None]:
        try:
            yield
        except Exception:
            # Not when cancelled: the thread goes on writing then, and the room stays its own.
            self._abandon(filling)
            raise

    def _abandon(self, filling: _Filling) -> None:
        if filling.pack is not None:
            self._warm.abandon(filling.pack)

    async def _keep(self, staged: Path, checked: CheckedAdapter, notes: tuple[str, ...]) -> _Kept:
        """Makes it durable, and reports on it."""
        must = False
        while (kept := await self._workers.run(self._try_to_keep, staged, checked, notes, must)) is None:
            missing = await self._workers.run(self._disk.missing_bytes, staged, checked.digest)
            must = self._make_room is None or (missing > 0 and not await self._make_room(missing))
        return kept

    def _try_to_keep(
        self, staged: Path, checked: CheckedAdapter, notes: tuple[str, ...], must: bool
    ) -> _Kept | None:
        """None where there is no room, which is an error if it `must`. All in one visit to a thread."""
        if not must and self._disk.missing_bytes(staged, checked.digest):
            return None
        version = report_version(checked, notes, crew=self._crew)
        is_new = self._disk.commit_object(staged, checked.digest)
        return _Kept(version, recipe_of(checked.plan) if is_new else None)


def _open_early(staged: Path, layout: PackLayout) -> OpenedAdapter:
    """With what will be needed in the end, while there is time."""
    opened = open_adapter(staged, layout)
    _ = opened.identity
    return opened


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
