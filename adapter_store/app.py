"""One adapter store, put together and run."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from adapter_store.config import StoreConfig
from adapter_store.loads.admin import Admin
from adapter_store.loads.loader import Loader
from adapter_store.loads.resolving import Resolver, SharedNames
from adapter_store.loads.uploads import Uploads
from adapter_store.loads.watching import WatchedFolder
from adapter_store.peers.executors import Executors
from adapter_store.peers.followers import Followers
from adapter_store.peers.pack_chunks import PackChunks
from adapter_store.peers.watchers import Watchers
from adapter_store.records.database import Database
from adapter_store.records.disk_room import DiskRoom
from adapter_store.records.layouts import Layouts
from adapter_store.records.ledger import Ledger
from adapter_store.service.chat_templates import ChatTemplates
from adapter_store.service.metrics import StoreMetrics
from adapter_store.service.servicers import CatalogServicer, PackServicer
from adapter_store.service.statistics import StoreStatistics, pack_statistics
from adapter_store.sources.opening import Sources
from adapter_store.threads import Threads
from adapter_store.tiers.arena import Arena
from adapter_store.tiers.arena_file import ArenaFile
from adapter_store.tiers.counters import Counters
from adapter_store.tiers.disk import DiskTier, open_disk
from adapter_store.tiers.eviction import POLICIES
from adapter_store.tiers.holds import Holds
from adapter_store.tiers.making import PackMaker
from adapter_store.tiers.warm import WarmTier
from lorikeet.v1 import store_pb2, store_pb2_grpc
from rpc.errors import unavailable
from rpc.first_messages import FirstMessages
from rpc.metrics import MetricsServer
from rpc.server import Server
from rpc.tuning import tune_process

log = logging.getLogger(__name__)

# Streams and calls at once, of all frontends, executors and admin clients of a host.
_MAX_CALLS = 4096
# Digests that one question about statistics may name.
_MAX_ASKED = 1000


class AdapterStore:
    """All parts of a store, without a server. Belongs to the event loop that it is opened on."""

    def __init__(
        self, config: StoreConfig, arena_file: ArenaFile, disk: DiskTier, database: Database
    ) -> None:
        self._config = config
        self._arena_file = arena_file
        self._disk = disk
        self._database = database
        self._threads = Threads(config, arena_file.path)
        self.counters = Counters()
        self.arena = Arena(arena_file, POLICIES[config.memory_eviction]())
        self.catalog = database.read_catalog(config.limits)
        self.layouts = Layouts(database, self._threads.writer, max_rank=config.max_rank)
        self.followers = Followers(config.follower_seconds)
        self.watchers = Watchers()
        self._first_messages = FirstMessages()
        self._holds = Holds()
        self.warm = self._make_warm()
        self._ledger = self._make_ledger()
        # What is pinned is in memory for the latest layout.
        self.layouts.on_registered(lambda: self.warm.set_pinned(self.catalog.pinned))
        self._sources = Sources(roots=config.roots, prefixes=config.sources)
        shared = SharedNames(
            sources=self._sources,
            place=config.resolve_from,
            reads=self._threads.reads,
            fetchers=self._threads.fetchers,
        )
        self.admin = Admin(
            catalog=self.catalog,
            ledger=self._ledger,
            layouts=self.layouts,
            loader=self._make_loader(),
            warm=self.warm,
            followers=self.followers,
            watchers=self.watchers,
            check_free=shared.check_free,
            max_pending_loads=config.max_pending_loads,
        )
        self._resolver = Resolver(admin=self.admin, shared=shared)
        self._watching = self._watch(config.watch_folder) if config.watch_folder is not None else None
        self.uploads = self._make_uploads()
        self.executors = Executors(
            arena=self.arena,
            catalog=self.catalog,
            warm=self.warm,
            retirement=self._ledger.retirement,
            grace_seconds=config.executor_grace_seconds,
        )
        self._recover()

    def _make_warm(self) -> WarmTier:
        maker = PackMaker(
            arena=self.arena, disk=self._disk, crew=self._threads.crew, scanners=self._threads.scanners
        )
        return WarmTier(
            arena=self.arena,
            maker=maker,
            workers=self._threads.packs,
            holds=self._holds,
            counters=self.counters,
            layout=lambda: self.layouts.latest,
        )

    def _make_ledger(self) -> Ledger:
        return Ledger(
            catalog=self.catalog,
            database=self._database,
            writer=self._threads.writer,
            disk=self._disk,
            workers=self._threads.loads,
            warm=self.warm,
            holds=self._holds,
            followers=self.followers,
            executor_grace_seconds=self._config.executor_grace_seconds,
        )

    def _make_loader(self) -> Loader:
        return Loader(
            disk=self._disk,
            arena=self.arena,
            warm=self.warm,
            workers=self._threads.loads,
            reads=self._threads.reads,
            fetchers=self._threads.fetchers,
            crew=self._threads.crew,
            scanners=self._threads.scanners,
            holds=self._holds,
            counters=self.counters,
            max_bytes=self._config.max_adapter_bytes,
            make_room=DiskRoom(catalog=self.catalog, ledger=self._ledger, disk=self._disk).make,
        )

    def _make_uploads(self) -> Uploads:
        return Uploads(
            disk=self._disk,
            worker=self._threads.spooler,
            load=self.admin.load,
            max_uploads=self._config.max_uploads,
            max_bytes=self._config.max_adapter_bytes,
            idle_seconds=self._config.upload_idle_seconds,
            most_seconds=self._config.upload_seconds,
        )

    @classmethod
    def open(cls, config: StoreConfig) -> Self:
        """Opens the data folder and the arena and finds again what a former store left.

        Raises:
            ValueError: another store uses them, they are damaged, or too small; the message says what to do.
            OSError: a folder cannot be made or read.
        """
        with ExitStack() as opened:
            disk = open_disk(config.data_dir, quota_bytes=config.disk_bytes)
            opened.callback(disk.close)
            database = Database(config.data_dir)
            opened.callback(database.close)
            arena_file = ArenaFile.open(config.arena_folder, config.arena_bytes)
            opened.callback(arena_file.close)
            store = cls(config, arena_file, disk, database)
            opened.pop_all()
        return store

    def servicers(self) -> tuple[CatalogServicer, PackServicer]:
        """What answers the store's calls."""
        catalog = CatalogServicer(
            admin=self.admin,
            sources=self._sources,
            resolver=self._resolver,
            uploads=self.uploads,
            followers=self.followers,
            watchers=self.watchers,
            templates=ChatTemplates(
                catalog=self.catalog, disk=self._disk, workers=self._threads.packs, holds=self._holds
            ),
            first_messages=self._first_messages,
        )
        packs = PackServicer(
            layouts=self.layouts,
            executors=self.executors,
            chunks=PackChunks(catalog=self.catalog, warm=self.warm, arena=self.arena),
            arena_file=self._arena_file.path.name,
            arena_bytes=self._arena_file.size,
            statistics=self._pack_statistics,
            first_messages=self._first_messages,
        )
        return catalog, packs

    def statistics(self) -> StoreStatistics:
        """Counts of now."""
        return StoreStatistics(
            adapters=len(self.catalog.pointers()),
            retiring=len(self.catalog.retiring),
            revision=self.catalog.revision,
            pending_loads=self.admin.pending,
            uploads=self.uploads.running,
            running_work=self._threads.running,
            lost_reads=self._threads.reads.lost,
            coming_packs=self.warm.coming,
            followers=len(self.followers),
            watchers=len(self.watchers),
            executors=len(self.executors),
            leases=self.executors.leases,
            arena=self.arena.statistics(),
            disk=self._disk.statistics(),
        )

    def _pack_statistics(self, request: store_pb2.GetPackStatisticsRequest) -> store_pb2.PackStatistics:
        asked = request.digests[:_MAX_ASKED]
        warm = self.warm.warm_digests().intersection(asked) if asked else ()
        return pack_statistics(self.statistics(), self.counters, warm)

    def check_integrity(self) -> None:
        """Asserts what must hold between any two events."""
        self.catalog.check_integrity()
        self.arena.check_integrity()

    def cut_streams(self) -> None:
        """Ends every long-lived stream: its peer opens it anew when the store is back."""
        goodbye = unavailable(
            "SHUTTING_DOWN", "the store is shutting down: open the stream again when it is back"
        )
        self._first_messages.close(goodbye)
        self.followers.close(goodbye)
        self.watchers.close(goodbye)
        self.executors.cut(goodbye)

    async def close(self) -> None:
        """Stops what runs, and lets go of the files."""
        self._grace.cancel()
        self._sources.close()
        self._threads.reads.close()
        if self._watching is not None:
            self._watching.cancel()
        await self.admin.close()
        # What is retiring goes on after the next start, however long the rest takes.
        await self._ledger.retirement.close()
        await self.warm.close()
        await self._ledger.close()
        self._threads.close()
        self._database.close()
        self._arena_file.close()
        self._disk.close()

    def _watch(self, folder: Path) -> asyncio.Task[None]:
        watched = WatchedFolder(
            folder=folder,
            open_source=self._sources.open,
            load=self.admin.load,
            is_ready=lambda: bool(self.layouts.digests),
            reads=self._threads.reads,
        )
        return asyncio.create_task(watched.run())

    def _recover(self) -> None:
        lost = self._disk.sweep(self.catalog.digests)
        for digest in lost:
            if digest not in self.catalog.retiring:
                log.error("the files of adapter %s are gone from the data folder: load it again", digest)
        for pack in self.arena.packs:
            if not self.catalog.knows(pack.key.digest) or pack.key.layout not in self.layouts.digests:
                self.arena.drop(pack.key)
        self._ledger.resume()
        loop = asyncio.get_running_loop()
        self._grace = loop.call_later(self._config.executor_grace_seconds, self.warm.end_grace)
        log.info(
            "%d adapters at revision %d, %d packs in memory",
            len(self.catalog.pointers()),
            self.catalog.revision,
            len(self.arena.packs),
        )


async def run(
    config: StoreConfig, *, ready: Callable[[str], None] | None = None, stop: asyncio.Event | None = None
) -> None:
    """Serves until `stop` is set or the task is cancelled, then drains.

    Args:
        ready: called with the bound address once calls are answered.

    Raises:
        ValueError, OSError: it cannot start; the message says what to do.
    """
    store = AdapterStore.open(config)
    server = Server(maximum_concurrent_rpcs=_MAX_CALLS)
    catalog, packs = store.servicers()
    server.add("lorikeet.v1.CatalogService", store_pb2_grpc.add_CatalogServiceServicer_to_server, catalog)
    server.add("lorikeet.v1.PackService", store_pb2_grpc.add_PackServiceServicer_to_server, packs)
    metrics = MetricsServer(StoreMetrics(store.statistics, store.counters).gather)
    try:
        address = await server.start(config.listen)
        if config.metrics_listen:
            await metrics.start(config.metrics_listen)
        tune_process()
        await server.set_serving(True)
        log.info("serving on %s, adapters from %s", address, [str(root) for root in config.roots])
        if ready is not None:
            ready(address)
        await (stop or asyncio.Event()).wait()
    finally:
        await server.set_serving(False)
        store.cut_streams()
        await server.drain(config.drain_seconds)
        await metrics.stop()
        await store.close()
        log.info("stopped")
