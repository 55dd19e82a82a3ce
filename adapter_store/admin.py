"""Loading, unloading and listing: one change of the catalog at a time, told to everyone in order."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from adapter_store.catalog import Catalog, Change, Pointer, check_name
from adapter_store.concurrency import KeyedLock, SingleFlight, Workers
from adapter_store.database import Database
from adapter_store.followers import Follower, Followers
from adapter_store.layouts import Layouts
from adapter_store.loader import Loader
from adapter_store.retirement import Retirement
from adapter_store.tiers.disk import DiskTier
from adapter_store.tiers.holds import Holds
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.warm import WarmTier
from adapter_store.watchers import AdapterView, Event, Progress, Stage, State, Watcher, Watchers
from rpc.errors import LorikeetError, resource_exhausted

log = logging.getLogger(__name__)


class Admin:
    """What the catalog's clients can do. Belongs to the event loop.

    Args:
        writer: the one thread that writes to the database.
        max_pending_loads: loads running or waiting at once.
        executor_grace_seconds: see Retirement.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        database: Database,
        writer: Workers,
        layouts: Layouts,
        loader: Loader,
        disk: DiskTier,
        workers: Workers,
        warm: WarmTier,
        holds: Holds,
        followers: Followers,
        watchers: Watchers,
        max_pending_loads: int,
        executor_grace_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._database = database
        self._writer = writer
        self._layouts = layouts
        self._loader = loader
        self._disk = disk
        self._workers = workers
        self._warm = warm
        self._holds = holds
        self._followers = followers
        self._watchers = watchers
        self._max_pending = max_pending_loads
        self.retirement = Retirement(holds=holds, grace_seconds=executor_grace_seconds, finish=self._finish)
        self._flights: SingleFlight[tuple[AdapterView, bool]] = SingleFlight()
        self._names = KeyedLock()
        self._change = asyncio.Lock()
        # Names that were removed and whose digest still retires.
        self._unloading: dict[str, list[AdapterView]] = {}
        self._trash: set[asyncio.Task[None]] = set()
        holds.on_free(self._remove_if_unknown)

    @property
    def pending(self) -> int:
        """Loads and unloads that run or wait."""
        return len(self._flights)

    async def load(self, name: str, source: str) -> tuple[AdapterView, bool]:
        """Points a name at what lies at a source; the second value is False when it did already.

        Goes on when the caller is cancelled; a caller with the same name and source joins it.

        Raises:
            LorikeetError: see AdapterService.LoadAdapter.
        """
        check_name(name)
        key = ("load", name, source)
        if key not in self._flights and len(self._flights) >= self._max_pending:
            raise resource_exhausted(
                "TOO_MANY_LOADS", f"{self._max_pending} loads are running or waiting already", retry_after=1.0
            )
        return await self._flights.run(key, lambda: self._load(name, source))

    async def unload(self, name: str) -> AdapterView:
        """Removes a name. Raises LorikeetError: NOT_FOUND."""
        check_name(name)
        view, _ = await self._flights.run(("unload", name), lambda: self._unload(name))
        return view

    def get(self, name: str) -> AdapterView:
        """Raises LorikeetError: NOT_FOUND."""
        return self._view(self._catalog.get(name))

    def page(self, size: int, token: str) -> tuple[list[AdapterView], str]:
        """A page of adapters by name, and the token of the next. Raises LorikeetError: INVALID_ARGUMENT."""
        pointers, following = self._catalog.page(size, token)
        return [self._view(pointer) for pointer in pointers], following

    def prefetch(self, adapter: str) -> None:
        """Brings an adapter into memory, some time soon. Raises LorikeetError: NOT_FOUND."""
        self._warm.prefetch(self._catalog.resolve(adapter), self._layouts.current)

    def follow(self) -> Follower:
        """Begins a Follow stream; `unfollow` ends it."""
        digests = {pointer.name: pointer.digest for pointer in self._catalog.pointers()}
        return self._followers.join(self._catalog.revision, digests)

    def watch(self, name: str) -> Watcher:
        """Begins a Watch stream; `unwatch` ends it. Raises LorikeetError: RESOURCE_EXHAUSTED."""
        pointers = [pointer for pointer in self._catalog.pointers() if name in ("", pointer.name)]
        return self._watchers.join(name, [Event(adapter=self._view(pointer)) for pointer in pointers])

    async def close(self) -> None:
        """Cancels what runs and waits for it."""
        await self._flights.close()
        await self.retirement.close()
        await asyncio.gather(*self._trash, return_exceptions=True)

    async def _load(self, name: str, source: str) -> tuple[AdapterView, bool]:
        try:
            async with self._names.hold(name):
                view, changed = await self._load_alone(name, source)
        except Exception as error:
            message = (
                str(error) if isinstance(error, LorikeetError) else "internal error; see the store's log"
            )
            failed = AdapterView(
                name=name, source=source, state=State.FAILED, revision=self._catalog.revision
            )
            self._watchers.publish(Event(adapter=failed, error=message))
            raise
        self._watchers.publish(Event(adapter=view))
        # Also when nothing changed: a former attempt may have ended before everyone had heard of it.
        await self._followers.caught_up(view.revision)
        return view, changed

    async def _load_alone(self, name: str, source: str) -> tuple[AdapterView, bool]:
        loading = AdapterView(name=name, source=source, state=State.LOADING, revision=self._catalog.revision)

        def report(progress: Progress) -> None:
            self._watchers.publish(Event(adapter=loading, progress=progress))

        report(Progress(stage=Stage.COPY, bytes_done=0, bytes_total=0))
        layout = self._layouts.current
        async with self._loader.load(source, layout, report) as version:
            change = await self._do(lambda: self._catalog.plan_point(name, version, source, time.time_ns()))
            self._warm.prefetch(version.digest, layout)
        return self._view(self._catalog.get(name)), change is not None

    async def _unload(self, name: str) -> tuple[AdapterView, bool]:
        async with self._names.hold(name):
            gone = self._view(self._catalog.get(name))
            change = await self._do(lambda: self._catalog.plan_remove(name))
            assert change is not None
            view = replace(gone, state=State.UNLOADING, revision=change.revision, is_warm=False)
            self._watchers.publish(Event(adapter=view))
            if change.retired is None:
                view = self._tell_unloaded(view)
            else:
                self._unloading.setdefault(change.retired, []).append(view)
        await self._followers.caught_up(change.revision)
        still_retiring = change.retired is not None and change.retired in self._catalog.retiring
        return (view if still_retiring else replace(view, state=State.UNLOADED)), True

    async def _do(self, plan: Callable[[], Change | None]) -> Change | None:
        """Plans a change, writes it down and lets it count; None when there is nothing to do."""
        async with self._change:
            change = plan()
            if change is None:
                return None
            with _database_errors():
                await self._writer.run(self._database.commit, change)
            self._catalog.apply(change)
            if change.pointer is not None:
                self._revive(change.pointer.digest)
                self._followers.publish(change.revision, change.pointer.name, change.pointer.digest)
            if change.removed is not None:
                self._followers.publish(change.revision, change.removed, "")
            if change.retired is not None:
                self.retirement.begin(change.retired)
            return change

    def _revive(self, digest: str) -> None:
        self.retirement.revive(digest)
        for view in self._unloading.pop(digest, []):
            self._tell_unloaded(view)

    async def _finish(self, digest: str) -> None:
        """Nobody needs a retired digest any more."""
        async with self._change:
            if digest not in self._catalog.retiring or self._holds.is_held(digest):
                return
            self._catalog.forget(digest)
            self._warm.drop(digest)
            self._remove_files(digest)
            await self._writer.run(self._database.forget, digest)
        for view in self._unloading.pop(digest, []):
            self._tell_unloaded(view)

    def _remove_if_unknown(self, digest: str) -> None:
        # What a failed load left behind, or what was made for a lease while its adapter went away.
        if not self._catalog.knows(digest):
            self._warm.drop(digest)
            self._remove_files(digest)

    def _remove_files(self, digest: str) -> None:
        # Out of the tier at once, so that nobody finds half of it; the bytes go in their own time.
        task = asyncio.ensure_future(self._workers.run(self._disk.discard, self._disk.set_aside(digest)))
        self._trash.add(task)
        task.add_done_callback(self._trash.discard)

    def _tell_unloaded(self, view: AdapterView) -> AdapterView:
        unloaded = replace(view, state=State.UNLOADED)
        self._watchers.publish(Event(adapter=unloaded))
        return unloaded

    def _view(self, pointer: Pointer) -> AdapterView:
        keys = (PackKey(layout=layout, digest=pointer.digest) for layout in self._layouts.digests)
        return AdapterView(
            name=pointer.name,
            source=pointer.source,
            state=State.ACTIVE,
            revision=pointer.revision,
            pointer=pointer,
            version=self._catalog.version(pointer.digest),
            is_warm=any(map(self._warm.is_warm, keys)),
        )


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        log.exception("the catalog cannot be written")
        raise resource_exhausted(
            "CATALOG_NOT_WRITTEN", f"the store cannot write its catalog ({error}): check its disk"
        ) from error
