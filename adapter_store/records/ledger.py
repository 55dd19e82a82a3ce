"""Changes of the catalog: planned, written down, then told to everyone, one at a time."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from adapter_store.catalog.catalog import Catalog, Change
from adapter_store.concurrency.calls import uninterrupted
from adapter_store.concurrency.workers import Workers
from adapter_store.peers.followers import Followers, Target, target_of
from adapter_store.peers.retirement import Retirement
from adapter_store.records.database import Database, Settled, database_errors
from adapter_store.tiers.disk import DiskTier
from adapter_store.tiers.holds import Holds
from adapter_store.tiers.warm import WarmTier

log = logging.getLogger(__name__)

_TIDY_SECONDS = 0.2


class Ledger:
    """The only one who changes the catalog, and who removes a digest's files. Belongs to the event loop.

    Args:
        writer: the one thread that writes to the database.
        workers: threads that delete files.
        executor_grace_seconds: see Retirement.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        database: Database,
        writer: Workers,
        disk: DiskTier,
        workers: Workers,
        warm: WarmTier,
        holds: Holds,
        followers: Followers,
        executor_grace_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._database = database
        self._writer = writer
        self._disk = disk
        self._workers = workers
        self._warm = warm
        self._holds = holds
        self._followers = followers
        self.retirement = Retirement(holds=holds, grace_seconds=executor_grace_seconds, finish=self._finish)
        self._lock = asyncio.Lock()
        self._listeners: list[Callable[[str], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        # Written down with the next change, or a little later; a store that is killed before does it again.
        self._unwritten: dict[str, bool] = {}
        self._tidy_timer: asyncio.TimerHandle | None = None
        holds.on_free(self._remove_if_unknown)

    def on_settled(self, listener: Callable[[str], None]) -> None:
        """`listener` hears of each retiring digest that is gone, or that a name points to again."""
        self._listeners.append(listener)

    async def do(self, plan: Callable[[], Change | None], *, abort_running: bool = False) -> Change | None:
        """Plans a change, writes it down and lets it count; None when there is nothing to do.

        Args:
            abort_running: frontends shall abort the requests of a name that goes.

        Raises:
            LorikeetError: RESOURCE_EXHAUSTED when it cannot be written, and whatever `plan` raises.
        """
        async with self._lock:
            change = plan()
            if change is None:
                return None
            settled = dict(self._unwritten)
            with database_errors():
                # What is written down must also count: else a load that is cancelled here would give up files
                # that have just got a name.
                await uninterrupted(self._writer.run(self._database.commit, change, settled))
            self._written(settled)
            pinned = self._catalog.pinned
            self._catalog.apply(change)
            if self._catalog.pinned != pinned:
                self._warm.set_pinned(self._catalog.pinned)
            if change.pointer is not None:
                self.retirement.revive(change.pointer.digest)
                self._settled(change.pointer.digest)
                self._followers.publish(change.revision, target_of(self._catalog, change.pointer))
            if change.removed is not None:
                target = Target(name=change.removed, abort_running=abort_running)
                self._followers.publish(change.revision, target)
            for digest in change.retired:
                self.retirement.begin(digest)
            return change

    def resume(self) -> None:
        """At start: goes on with what was retiring, and pins what shall stay in memory."""
        self.retirement.resume(self._catalog.retiring)
        self._warm.set_pinned(self._catalog.pinned)

    async def close(self) -> None:
        """Stops; what is retiring goes on after the next start."""
        await self.retirement.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tidy_timer is not None:
            self._tidy_timer.cancel()
            await self._tidy()

    async def _finish(self, digest: str) -> bool:
        """Nobody needs a retired digest any more; False when somebody does after all."""
        # A frontend that has not heard of the change yet may still send requests for it.
        await self._followers.caught_up(self._catalog.revision)
        async with self._lock:
            if digest not in self._catalog.retiring:
                return True
            if self._holds.is_held(digest) or self.retirement.is_waiting(digest):
                return False
            stays = self._catalog.settle(digest)
            if stays:
                self._warm.drop(digest)
            else:
                self._remove(digest)
            self._settled(digest)
            self._unwritten[digest] = stays
            self._tidy_soon()
            return True

    def _remove_if_unknown(self, digest: str) -> None:
        # What a failed load left behind, or what was made for a lease while its adapter went away.
        if not self._catalog.keeps(digest):
            self._remove(digest)

    def _remove(self, digest: str) -> None:
        self._warm.drop(digest)
        # Out of the tier at once, so that nobody finds half of it; the bytes go in their own time.
        self._start(self._empty(self._disk.set_aside(digest)))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _empty(self, trash: Path) -> None:
        await self._workers.run(self._disk.discard, trash)
        self._tidy_soon()

    def _tidy_soon(self) -> None:
        if self._tidy_timer is None:
            loop = asyncio.get_running_loop()
            self._tidy_timer = loop.call_later(_TIDY_SECONDS, lambda: self._start(self._tidy()))

    async def _tidy(self) -> None:
        """What nobody waits for: writes down what has retired, and keeps room for the next removal."""
        self._tidy_timer = None
        async with self._lock:
            settled = dict(self._unwritten)
            try:
                await self._writer.run(self._database.settle, settled)
            except sqlite3.Error:
                log.exception("what has retired cannot be written down; the next change tries again")
            else:
                self._written(settled)

    def _written(self, settled: Settled) -> None:
        for digest in settled:
            self._unwritten.pop(digest, None)

    def _settled(self, digest: str) -> None:
        for listener in self._listeners:
            listener(digest)
