"""From disk to memory: brings packs into the arena when they are asked for, each once however many ask."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Set
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from adapter_store.concurrency.calls import SingleFlight
from adapter_store.concurrency.workers import Workers
from adapter_store.formats.layout import PackLayout
from adapter_store.packs.reading import CheckedAdapter, OpenedAdapter
from adapter_store.packs.recipe import Recipe
from adapter_store.tiers.arena import Arena
from adapter_store.tiers.counters import Counters, Stopwatch
from adapter_store.tiers.hints import Hints, Way
from adapter_store.tiers.holds import Holds
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.making import PackMaker
from adapter_store.tiers.pack import ArenaPack, PackState
from adapter_store.tiers.recipes import Recipes
from adapter_store.tiers.sealing import Sealer
from lorikeet.v1 import layout_pb2
from rpc.errors import LorikeetError, resource_exhausted

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_MAX_HINTS = 16
_MAX_ATTEMPTS = 8


class WarmTier:
    """Leases packs, loading them first where needed. Belongs to the event loop.

    Args:
        arena: where packs go.
        maker: makes them.
        workers: threads for what is waited for.
        holds: keeps the files of a digest while they are read here.
        layout: what pinned packs are made for, if anything yet.
        room_seconds: how long to wait while everything in the arena is leased.
    """

    def __init__(
        self,
        *,
        arena: Arena,
        maker: PackMaker,
        workers: Workers,
        holds: Holds,
        counters: Counters,
        layout: Callable[[], PackLayout | None] = lambda: None,
        room_seconds: float = 30.0,
    ) -> None:
        self._arena = arena
        self._maker = maker
        self._workers = workers
        self._holds = holds
        self._counters = counters
        self._layout = layout
        self._room_seconds = room_seconds
        self._flights: SingleFlight[None] = SingleFlight()
        self._recipes = Recipes()
        self._hints = Hints()
        self._ways: dict[PackKey, Way] = {}
        self._freed = asyncio.Event()
        self._sealer = Sealer(
            arena=arena, recipes=self._recipes, run=self._hints.run, released=self._freed.set
        )

    async def acquire(self, digest: str, layout: PackLayout) -> ArenaPack:
        """Leases a pack; `release` it once it was copied.

        Raises:
            LorikeetError: the adapter does not fit the layout, is lost, or the arena has no room for it.
        """
        pack = self.lease_if_there(digest, layout)
        if pack is not None:
            return pack
        self._counters.memory.misses += 1
        key = PackKey(layout=layout.digest, digest=digest)
        for _ in range(_MAX_ATTEMPTS):
            await asyncio.shield(self._start(key, layout, is_urgent=True))
            if (pack := self._lease(key)) is not None:
                return pack
        raise self._no_room()

    def lease_if_there(self, digest: str, layout: PackLayout) -> ArenaPack | None:
        """Leases a pack that is in memory, at once."""
        pack = self._lease(PackKey(layout=layout.digest, digest=digest))
        self._counters.memory.hits += pack is not None
        return pack

    def release(self, pack: ArenaPack) -> None:
        """Ends a lease."""
        self._arena.release(pack)
        self._wake()

    def prefetch(self, digest: str, layout: PackLayout) -> None:
        """Brings a pack in ahead of use, unless too many hints are being followed already."""
        if len(self._flights) < _MAX_HINTS:
            self._hint(PackKey(layout=layout.digest, digest=digest), layout)

    def set_pinned(self, digests: Set[str]) -> None:
        """Says whose packs stay in memory, and brings in those that are not there."""
        self._arena.set_pinned(digests)
        layout = self._layout()
        if layout is not None:
            for digest in sorted(digests):
                self._hint(PackKey(layout=layout.digest, digest=digest), layout)
        self._wake()

    def begin_unnamed(self, layout: str, pack_bytes: int) -> ArenaPack | None:
        """Room for a pack whose digest is not known yet; None when there is none right now.

        Raises LorikeetError, FAILED_PRECONDITION, when the whole arena is too small.
        """
        return self._arena.begin_unnamed(layout, pack_bytes)

    def arrive(self, pack: ArenaPack, checked: CheckedAdapter, seconds: float) -> None:
        """A pack that was begun unnamed is written: it can be leased from now on."""
        key = PackKey(layout=pack.key.layout, digest=checked.digest)
        if self._arena.find(key) is not None:
            self.abandon(pack)
        else:
            self._arena.name(pack, key)
            self._publish(pack, checked.manifest, seconds)

    def remember(self, digest: str, layout: PackLayout, recipe: Recipe) -> None:
        """How the pack of a new object was made, which has been checked."""
        # One that was lost and is loaded again may lie in other files than before.
        self._recipes.forget_digest(digest)
        key = PackKey(layout=layout.digest, digest=digest)
        pack = self._arena.find(key)
        self._recipes.keep(key, recipe, b"" if pack is None else pack.checksum)

    def abandon(self, pack: ArenaPack) -> None:
        """A pack that was begun could not be written."""
        self._arena.abandon(pack)
        self._wake()

    @property
    def coming(self) -> int:
        """Packs on their way into memory."""
        return len(self._flights) + len(self._sealer)

    def is_warm(self, key: PackKey) -> bool:
        """A probe."""
        pack = self._arena.find(key)
        return pack is not None and pack.state is PackState.STABLE

    def warm_digests(self) -> frozenset[str]:
        """Whose packs can be leased at once, in any layout."""
        return frozenset(pack.key.digest for pack in self._arena.packs if pack.state is PackState.STABLE)

    def drop(self, digest: str) -> None:
        """Takes an adapter that is not busy out of memory, in every layout."""
        for pack in self._arena.packs:
            if pack.key.digest == digest:
                self._arena.drop(pack.key)
        self._recipes.forget_digest(digest)
        self._wake()

    def end_grace(self) -> None:
        """Leases of the store's former life that nobody has claimed are void."""
        self._arena.end_grace()
        self._wake()

    async def close(self) -> None:
        await self._flights.close()
        await self._sealer.close()
        self._hints.close()

    def _lease(self, key: PackKey) -> ArenaPack | None:
        pack = self._arena.find(key)
        if pack is None or pack.manifest is None:
            return None
        self._arena.lease(pack)
        return pack

    def _hint(self, key: PackKey, layout: PackLayout) -> None:
        pack = self._arena.find(key)
        if pack is None or pack.manifest is None:
            self._start(key, layout, is_urgent=False).add_done_callback(_log_mistakes)

    def _start(self, key: PackKey, layout: PackLayout, *, is_urgent: bool) -> asyncio.Task[None]:
        """Begins to bring a pack in, or joins and hurries what does so already."""
        # Known before its task has its first turn, so that a demand that follows at once finds it.
        way = self._ways.setdefault(key, Way(is_urgent=is_urgent))
        if is_urgent:
            way.hurry()
        return self._flights.start(key, lambda: self._fetch(key, layout, way))

    async def _fetch(self, key: PackKey, layout: PackLayout, way: Way) -> None:
        try:
            with self._holds.hold(key.digest):
                async with self._hints.turn(way):
                    pack = self._arena.find(key)
                    if pack is not None and pack.manifest is None:
                        await self._verify(pack, layout, way)
                    if self._arena.find(key) is None:
                        await self._bring_in(key, layout, way)
        finally:
            del self._ways[key]

    async def _verify(self, pack: ArenaPack, layout: PackLayout, way: Way) -> None:
        """A pack that a former store left, and the manifest of its object, are what its checksum says."""
        if pack.state is PackState.WRITING:
            return  # a load that will name its pack: not ours
        opened = await self._open(pack.key, layout, way)
        if self._arena.find(pack.key) is not pack:
            return  # evicted meanwhile
        recipe = None
        if pack.checksum and opened.pack_bytes == pack.pack_bytes:
            self._arena.lease(pack)
            try:
                recipe = await self._run(way, self._maker.verify, pack, opened, way.urgency)
            finally:
                self.release(pack)
        if recipe is not None:
            self._arena.mark_verified(pack, opened.plan.manifest)
            self._recipes.keep(pack.key, recipe, pack.checksum)
        elif self._arena.find(pack.key) is pack:
            log.warning("the pack of %s in the arena is not what it should be: made anew", pack.key.digest)
            self._arena.drop(pack.key)

    async def _bring_in(self, key: PackKey, layout: PackLayout, way: Way) -> None:
        clock = Stopwatch(self._counters)
        known = self._recipes.find(key)
        if known is None or not await self._bring_back(key, way, clock, *known):
            await self._bring_checked(key, layout, way, clock)

    async def _bring_back(
        self, key: PackKey, way: Way, clock: Stopwatch, recipe: Recipe, checksum: bytes
    ) -> bool:
        """By a recipe; False where that does not bring what it did before."""
        self._counters.disk.hits += 1
        pack = await self._room(key, recipe.pack_bytes, way)
        if pack is None:
            return True
        with self._abandoned_unless_filled(pack), clock.stage("fill_object"):
            is_same = await self._run(way, self._maker.fill_again, pack, recipe, checksum, way.urgency)
        if not is_same:
            self._recipes.forget(key)
            self.abandon(pack)
            return False
        self._publish(pack, recipe.read_manifest(), clock.seconds, checksum)
        return True

    async def _bring_checked(self, key: PackKey, layout: PackLayout, way: Way, clock: Stopwatch) -> None:
        """Reads the headers, and looks at every tensor."""
        with clock.stage("open_object"):
            opened = await self._open(key, layout, way)
        pack = await self._room(key, opened.pack_bytes, way)
        if pack is None:
            return
        with self._abandoned_unless_filled(pack), clock.stage("fill_object"):
            recipe = await self._run(way, self._maker.fill, pack, opened, way.urgency)
        self._recipes.keep(key, recipe, b"")
        self._publish(pack, opened.plan.manifest, clock.seconds)

    @contextmanager
    def _abandoned_unless_filled(self, pack: ArenaPack) -> Iterator[None]:
        try:
            yield
        except Exception:
            # Not when cancelled: the thread goes on writing then, and the room stays its own.
            self._recipes.forget(pack.key)
            self.abandon(pack)
            raise

    async def _open(self, key: PackKey, layout: PackLayout, way: Way) -> OpenedAdapter:
        try:
            opened = await self._run(way, self._maker.open, key.digest, layout)
        except LorikeetError:
            self._counters.disk.misses += 1
            raise
        self._counters.disk.hits += 1
        return opened

    def _publish(
        self, pack: ArenaPack, manifest: layout_pb2.PackManifest, seconds: float, checksum: bytes = b""
    ) -> None:
        self._arena.publish(pack, manifest, seconds=seconds)
        self._counters.memory.loads += 1
        if checksum:
            self._arena.set_checksum(pack, checksum)
        else:
            self._sealer.add(pack)

    async def _room(self, key: PackKey, pack_bytes: int, way: Way) -> ArenaPack | None:
        """None when a load of the same content has brought the pack meanwhile."""
        deadline = asyncio.get_running_loop().time() + self._room_seconds
        while self._arena.find(key) is None:
            if (pack := self._arena.begin(key, pack_bytes)) is not None:
                return pack
            if not way.urgency:
                raise self._no_room()
            self._freed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._freed.wait()
            except TimeoutError as error:
                raise self._no_room() from error
        return None

    def _run(self, way: Way, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        run = self._workers.run if way.urgency else self._hints.run
        return run(function, *args, **kwargs)

    def _wake(self) -> None:
        self._freed.set()

    def _no_room(self) -> LorikeetError:
        return resource_exhausted(
            "ARENA_FULL",
            "everything in the store's memory is pinned or being copied by executors: retry, or start the "
            "store with a larger arena_bytes",
            retry_after=1.0,
        )


def _log_mistakes(task: asyncio.Task[None]) -> None:
    """Nobody waits for a hint: what is wrong with an adapter is told to who asks for it, a bug to nobody."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, LorikeetError):
        log.error("an adapter could not be brought into memory ahead of use", exc_info=error)
