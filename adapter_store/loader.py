"""The way of an adapter into the store: copied, checked, packed, kept."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from adapter_store.catalog import ModuleReport, Version
from adapter_store.concurrency import KeyedLock, Workers
from adapter_store.formats.layout import PackLayout
from adapter_store.formats.plan import plan_pack
from adapter_store.formats.reading import CheckedAdapter, read_adapter
from adapter_store.sources import SourceReader
from adapter_store.tiers.arena import Arena
from adapter_store.tiers.building import store_pack
from adapter_store.tiers.disk import DiskTier, StoredPack
from adapter_store.tiers.holds import Holds
from adapter_store.tiers.key import PackKey
from adapter_store.watchers import Progress, Stage

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 0.05


class Loader:
    """Runs the stages on worker threads. Belongs to the event loop.

    Args:
        max_bytes: largest adapter.
    """

    def __init__(
        self,
        *,
        disk: DiskTier,
        arena: Arena,
        workers: Workers,
        holds: Holds,
        max_bytes: int,
    ) -> None:
        self._disk = disk
        self._arena = arena
        self._workers = workers
        self._holds = holds
        self._max_bytes = max_bytes
        # Two loads of the same content, under two names, must not write the same files at once.
        self._digests = KeyedLock()

    @asynccontextmanager
    async def load(
        self, reader: SourceReader, layout: PackLayout, report: Callable[[Progress], None]
    ) -> AsyncIterator[Version]:
        """Brings an adapter into the disk tier and keeps it there for as long as the block takes.

        Args:
            reader: of where it lies.
            layout: what it must fit.
            report: called on the event loop as the load goes on.

        Raises:
            LorikeetError: what is wrong with the source or the adapter, and what to do.
        """
        clock = _Stopwatch()
        staged = self._disk.stage()
        try:
            notes = await self._workers.run(
                reader.copy, staged, self._max_bytes, _throttled(Stage.COPY, report)
            )
            clock.lap("copy")
            checked = await self._workers.run(
                read_adapter, staged, layout, _throttled(Stage.VALIDATE, report)
            )
            clock.lap("validate")
            with self._holds.hold(checked.digest):
                async with self._digests.hold(checked.digest):
                    pack = await self._workers.run(
                        self._pack, checked, layout, _throttled(Stage.PACK, report)
                    )
                    clock.lap("pack")
                    await self._workers.run(self._disk.commit_object, staged, checked.digest)
                    clock.lap("keep")
                log.info("%s is %s (%s)", reader.source, checked.digest, clock)
                report(Progress(stage=Stage.PUBLISH, bytes_done=0, bytes_total=0))
                yield _version(notes, checked, pack)
        finally:
            if staged.exists():
                await self._workers.run(self._disk.discard, staged)

    def _pack(
        self, checked: CheckedAdapter, layout: PackLayout, progress: Callable[[int, int], None]
    ) -> StoredPack:
        plan = plan_pack(checked.digest, checked.slices, layout)
        self._arena.check_capacity(plan.manifest.total_bytes)
        stored = self._disk.find_pack(PackKey(layout=layout.digest, digest=checked.digest))
        return stored or store_pack(self._disk, checked, plan, progress)


def _version(notes: tuple[str, ...], checked: CheckedAdapter, pack: StoredPack) -> Version:
    return Version(
        digest=checked.digest,
        pack_bytes=pack.manifest.total_bytes,
        max_rank=checked.max_rank,
        modules=tuple(
            ModuleReport(module=adapted.slice.module, rank=adapted.rank, scaling=adapted.scaling)
            for adapted in checked.slices
        ),
        notes=notes + checked.notes,
    )


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


class _Stopwatch:
    """Milliseconds of each stage, for the log."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._laps: list[str] = []

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps.append(f"{name} {1e3 * (now - self._last):.1f} ms")
        self._last = now

    def __str__(self) -> str:
        return ", ".join(self._laps)
