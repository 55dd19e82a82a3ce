"""The loader against a small real store: leases, races, restarts."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from executor.adapters.copier import Copier
from executor.adapters.lease_client import LeaseClient, is_news
from executor.adapters.loader import StoreLoader
from executor.adapters.placements import Placements
from executor.adapters.pool import PackCopy, PlainPool
from executor.control.loader import Copied, Granted, LoaderEvent, LoadFailed, Retire
from executor.control.request import Code
from lorikeet.v1 import layout_pb2, store_pb2
from rpc.channel import open_channel
from rpc.digests import layout_digest
from tests.support.executor_store import SmallStore, small_layout
from tests.support.waiting import WAIT_SECONDS

LAYOUT = small_layout()


class Engine:
    """Stands where the engine does: calls the port and collects its events."""

    def __init__(self, loader: StoreLoader, pool: PlainPool, woken: asyncio.Event) -> None:
        self.loader = loader
        self.pool = pool
        self.woken = woken

    async def next(self) -> LoaderEvent:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                self.woken.clear()
                events = self.loader.poll()
                if events:
                    assert len(events) == 1, events
                    return events[0]
                await self.woken.wait()

    async def events(self, count: int) -> list[LoaderEvent]:
        events: list[LoaderEvent] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while len(events) < count:
                self.woken.clear()
                events += self.loader.poll()
                if len(events) < count:
                    await self.woken.wait()
        return events

    async def load(self, digest: str, *, unit_offset: int, slot: int) -> LoaderEvent:
        self.loader.acquire(digest)
        granted = await self.next()
        if isinstance(granted, LoadFailed):
            return granted
        assert isinstance(granted, Granted)
        self.loader.copy(digest, unit_offset, slot)
        return await self.next()

    async def reload(self, digest: str, *, unit_offset: int) -> LoaderEvent:
        self.loader.release(digest)
        return await self.load(digest, unit_offset=unit_offset, slot=0)

    def content(self, unit_offset: int, size: int) -> bytes:
        return self.pool.bytes[unit_offset * 128 : unit_offset * 128 + size].tobytes()


@asynccontextmanager
async def engine_of(
    address: str, arena_dir: Path | None, *, patience: float = 20.0, pool: PlainPool | None = None
) -> AsyncIterator[Engine]:
    woken = asyncio.Event()
    pool = pool or PlainPool(units=256)
    async with open_channel(address) as channel:
        client = LeaseClient(
            channel=channel,
            layout=LAYOUT,
            layout_digest=layout_digest(LAYOUT),
            incarnation="e1",
            arena_dir=arena_dir,
            patience_seconds=patience,
        )
        with Copier() as copier:
            loader = StoreLoader(
                loop=asyncio.get_running_loop(), client=client, pool=pool, copier=copier, wake=woken.set
            )
            running = asyncio.create_task(loader.run())
            yield Engine(loader, pool, woken)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def store_at(folder: Path, address: str | None = None) -> AsyncIterator[tuple[SmallStore, str]]:
    store = SmallStore(folder, LAYOUT)
    bound = await store.start(address or f"unix:{folder}/store.sock")
    try:
        yield store, bound
    finally:
        await store.kill()


async def test_bytes_reach_the_pool_and_the_lease_ends_with_the_copy(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        digest = store.put("a")
        assert await engine.load(digest, unit_offset=3, slot=1) == Copied(digest=digest)
        assert engine.content(3, 1024) == b"a" * 1024
        assert engine.content(11, 128) == bytes(128)
        engine.loader.install(1, digest)
        assert engine.pool.slots == {1: (3, digest)}
        await store.until(lambda: store.leases == 0)
        engine.loader.clear(1)
        engine.loader.release(digest)
        assert engine.pool.slots == {}


async def test_a_pack_moved_before_the_copy_is_asked_for_again(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        digest = store.put("a")
        engine.loader.acquire(digest)
        assert isinstance(await engine.next(), Granted)
        store.move(digest)
        engine.loader.copy(digest, 0, 0)
        assert await engine.next() == Copied(digest=digest)
        assert engine.content(0, 1024) == b"a" * 1024
        assert store.acquires == [digest, digest]
        await store.until(lambda: store.leases == 0)


class MovingPool(PlainPool):
    """Has the store move the pack while its bytes are being copied, a few times over."""

    def __init__(self, *, units: int, moves: int) -> None:
        super().__init__(units=units)
        self.moves = moves
        self.move = lambda: None

    def write(self, copies: Sequence[PackCopy[tuple[int, str]]]) -> None:
        if self.moves:
            self.moves -= 1
            self.move()
        super().write(copies)


async def test_a_pack_moved_during_the_copy_is_asked_for_again(tmp_path: Path) -> None:
    pool = MovingPool(units=256, moves=2)
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path, pool=pool) as engine:
        digest = store.put("a")
        pool.move = lambda: store.move(digest)
        assert await engine.load(digest, unit_offset=0, slot=0) == Copied(digest=digest)
        assert engine.content(0, 1024) == b"a" * 1024
        assert len(store.acquires) == 3
        # Again without a lease, which would not have kept it from this store either.
        pool.moves = 1
        assert await engine.reload(digest, unit_offset=20) == Copied(digest=digest)
        assert engine.content(20, 1024) == b"a" * 1024
        assert len(store.acquires) == 4


async def test_a_pack_that_still_lies_there_is_copied_again_unasked(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        digest = store.put("a")
        assert await engine.load(digest, unit_offset=0, slot=0) == Copied(digest=digest)
        assert await engine.reload(digest, unit_offset=20) == Copied(digest=digest)
        assert engine.content(20, 1024) == b"a" * 1024
        await store.until(lambda: store.used == [digest] and store.leases == 0)
        assert store.acquires == [digest]
        engine.loader.prefetch(digest)
        await asyncio.sleep(0)  # its turn on the loop
        store.move(digest)
        assert await engine.reload(digest, unit_offset=40) == Copied(digest=digest)
        assert engine.content(40, 1024) == b"a" * 1024
        assert store.acquires == [digest, digest]
        assert store.prefetches == []


async def test_a_pack_that_still_lies_there_is_granted_without_a_turn_of_the_loop(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        digest = store.put("a")
        assert await engine.load(digest, unit_offset=0, slot=0) == Copied(digest=digest)
        for turn in range(3):
            engine.loader.release(digest)
            engine.loader.prefetch(digest)
            engine.loader.acquire(digest)
            assert engine.loader.poll() == [Granted(digest=digest, units=8)]
            engine.loader.copy(digest, 10 * turn, 0)
            assert await engine.next() == Copied(digest=digest)
            assert engine.content(10 * turn, 1024) == b"a" * 1024
        await store.until(lambda: store.used == [digest] * 3 and store.leases == 0)
        assert (store.acquires, store.prefetches) == ([digest], [])


async def test_a_retired_pack_is_asked_for(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        digest = store.put("a")
        assert await engine.load(digest, unit_offset=0, slot=0) == Copied(digest=digest)
        store.retire(digest)
        assert await engine.next() == Retire(digest=digest)
        assert await engine.reload(digest, unit_offset=0) == Copied(digest=digest)
        assert store.acquires == [digest, digest]


class PreparingPool(PlainPool):
    """Notes what is copied together and what is completed; refuses, or fails, where told to."""

    def __init__(self, *, units: int, refuses: str = "", fails: str = "") -> None:
        super().__init__(units=units)
        self.refuses, self.fails = refuses, fails
        self.copied: list[list[int]] = []
        self.completed: list[tuple[int, str, bytes]] = []
        self.may_copy = threading.Event()
        self.may_copy.set()

    def prepare(
        self, unit_offset: int, manifest: layout_pb2.PackManifest, places: Placements | None = None
    ) -> tuple[int, str]:
        assert threading.current_thread() is not threading.main_thread()
        if manifest.digest == self.refuses:
            raise ValueError("DoRA on m0 does not fit")
        if manifest.digest == self.fails:
            raise RuntimeError("a bug")
        return super().prepare(unit_offset, manifest, places)

    def write(self, copies: Sequence[PackCopy[tuple[int, str]]]) -> None:
        assert self.may_copy.wait(WAIT_SECONDS)
        self.copied.append([copy.slot for copy in copies])
        super().write(copies)

    def complete(self, unit_offset: int, manifest: layout_pb2.PackManifest, row: tuple[int, str]) -> None:
        start = unit_offset * 128
        self.completed.append((unit_offset, manifest.digest, self.bytes[start : start + 4].tobytes()))
        super().complete(unit_offset, manifest, row)


async def test_a_pack_is_completed_after_the_copy_and_before_it_counts(tmp_path: Path) -> None:
    pool = PreparingPool(units=256)
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path, pool=pool) as engine:
        digest = store.put("a")
        assert await engine.load(digest, unit_offset=5, slot=0) == Copied(digest=digest)
        assert pool.completed == [(5, digest, b"aaaa")]


async def test_packs_that_wait_are_copied_together_and_each_has_its_own_end(tmp_path: Path) -> None:
    pool = PreparingPool(units=256)
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path, pool=pool) as engine:
        digests = [store.put(letter) for letter in "abcdef"]
        first, good, wrong, moved, broken, last = digests
        pool.refuses, pool.fails = wrong, broken
        for digest in digests:
            engine.loader.acquire(digest)
            assert await engine.next() == Granted(digest=digest, units=8)
        store.move(moved)
        pool.may_copy.clear()
        for slot, digest in enumerate(digests):
            engine.loader.copy(digest, 10 * slot, slot)
        pool.may_copy.set()
        events = {event.digest: event for event in await engine.events(len(digests))}
        assert {digest for digest, event in events.items() if event == Copied(digest=digest)} == {
            first,
            good,
            moved,
            last,
        }
        failures = [events[digest] for digest in (wrong, broken)]
        assert [event.reason for event in failures if isinstance(event, LoadFailed)] == [
            "ADAPTER_DOES_NOT_FIT_BASE",
            "ADAPTER_LOAD",
        ]
        assert sorted(slot for slots in pool.copied for slot in slots) == [0, 1, 3, 5]
        assert max(map(len, pool.copied)) > 1
        for slot, letter in enumerate("abcdef"):
            assert engine.content(10 * slot, 1024) == (
                bytes(1024) if slot in (2, 4) else 1024 * letter.encode()
            )
        await store.until(lambda: store.leases == 0)


async def test_a_pack_that_does_not_fit_the_base_fails_by_name(tmp_path: Path) -> None:
    pool = PreparingPool(units=256)
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path, pool=pool) as engine:
        pool.refuses = store.put("a")
        event = await engine.load(pool.refuses, unit_offset=0, slot=0)
        assert isinstance(event, LoadFailed)
        assert (event.code, event.reason) == (Code.FAILED_PRECONDITION, "ADAPTER_DOES_NOT_FIT_BASE")
        assert "m0" in event.message
        await store.until(lambda: store.leases == 0)


async def test_a_pack_that_never_stays_fails_as_unavailable(tmp_path: Path) -> None:
    pool = MovingPool(units=256, moves=100)
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path, pool=pool) as engine:
        digest = store.put("a")
        pool.move = lambda: store.move(digest)
        event = await engine.load(digest, unit_offset=0, slot=0)
        assert isinstance(event, LoadFailed)
        assert (event.code, event.reason) == (Code.UNAVAILABLE, "ADAPTER_KEEPS_MOVING")
        await store.until(lambda: store.leases == 0)


async def test_a_bug_on_the_copiers_thread_ends_the_load(tmp_path: Path) -> None:
    pool = PreparingPool(units=256)
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path, pool=pool) as engine:
        pool.fails = store.put("a")
        event = await engine.load(pool.fails, unit_offset=0, slot=0)
        assert isinstance(event, LoadFailed)
        assert (event.code, event.reason) == (Code.INTERNAL, "ADAPTER_LOAD")


async def test_a_refusal_reaches_the_engine_word_for_word(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        for number, code in enumerate((Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.DATA_LOSS)):
            digest = f"{number}" * 64
            store.refusals[digest] = store_pb2.LeaseRefusal(code=int(code), reason="WHY", message="as it is")
            event = await engine.load(digest, unit_offset=0, slot=0)
            assert event == LoadFailed(digest=digest, code=code, reason="WHY", message="as it is")


async def test_a_lying_manifest_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        digest = store.put("a")
        store.packs[digest].manifest.slices[0].b_offset += 128
        event = await engine.load(digest, unit_offset=0, slot=0)
        assert isinstance(event, LoadFailed)
        assert (event.code, event.reason) == (Code.INTERNAL, "BAD_MANIFEST")
        assert not engine.pool.bytes.any()
        await store.until(lambda: store.leases == 0)


@pytest.mark.parametrize("arena", ["none", "missing"])
async def test_without_an_arena_the_bytes_come_in_chunks(tmp_path: Path, arena: str) -> None:
    arena_dir = None if arena == "none" else tmp_path / "elsewhere"
    async with store_at(tmp_path) as (store, address), engine_of(address, arena_dir) as engine:
        digest = store.put("c", rank=16)
        assert await engine.load(digest, unit_offset=5, slot=0) == Copied(digest=digest)
        assert engine.content(5, 2048) == b"c" * 2048


async def test_a_released_acquire_is_silent_and_gives_its_lease_back(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        first, second = store.put("a"), store.put("b")
        store.granting.clear()
        engine.loader.acquire(first)
        await store.until(lambda: store.acquires == [first])
        engine.loader.release(first)
        engine.loader.acquire(first)
        engine.loader.acquire(second)
        await store.until(lambda: store.acquires == [first, first, second] and store.leases == 2)
        store.granting.set()
        assert await engine.next() == Granted(digest=first, units=8)
        assert await engine.next() == Granted(digest=second, units=8)
        engine.loader.release(first)
        engine.loader.release(second)
        await store.until(lambda: store.leases == 0)


async def test_an_acquire_that_is_given_up_at_once_leaves_nothing(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        given_up, wanted = store.put("a"), store.put("b")
        for _ in range(3):
            engine.loader.acquire(given_up)
            engine.loader.release(given_up)
        assert await engine.load(wanted, unit_offset=0, slot=0) == Copied(digest=wanted)
        await store.until(lambda: store.leases == 0)
        assert not engine.loader._client._asked


async def test_an_event_already_queued_is_not_delivered_after_release(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        digest = store.put("a")
        engine.loader.acquire(digest)
        await engine.woken.wait()
        engine.loader.release(digest)
        assert engine.loader.poll() == []


async def test_hints_and_retirements_pass_in_both_directions(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        digest = store.put("a")
        await store.until(lambda: len(store.streams) == 1)
        assert store.streams[0].hello.layout_digest == layout_digest(LAYOUT)
        engine.loader.prefetch(digest)
        await store.until(lambda: store.prefetches == [digest])
        store.retire(digest)
        assert await engine.next() == Retire(digest=digest)
        engine.loader.retired(digest)
        await store.until(lambda: store.retired == [digest])


async def test_a_restarted_store_learns_of_leases_and_gets_waiting_acquires_again(tmp_path: Path) -> None:
    async with store_at(tmp_path) as (store, address), engine_of(address, tmp_path) as engine:
        held, waiting = store.put("a"), store.put("b")
        engine.loader.acquire(held)
        assert await engine.next() == Granted(digest=held, units=8)
        store.granting.clear()
        engine.loader.acquire(waiting)
        await store.until(lambda: store.leases == 2)
        await store.kill()
        again = SmallStore(tmp_path, LAYOUT)
        again.packs = store.packs
        await again.start(address)
        assert await engine.next() == Granted(digest=waiting, units=8)
        (declared,) = again.streams[0].hello.held
        assert (declared.digest, declared.generation) == (held, 2)
        engine.loader.copy(held, 0, 0)
        assert await engine.next() == Copied(digest=held)
        assert engine.content(0, 1024) == b"a" * 1024
        await again.kill()


async def test_an_acquire_while_the_store_is_away_fails_after_a_while(tmp_path: Path) -> None:
    async with engine_of(f"unix:{tmp_path}/nobody.sock", tmp_path, patience=0.05) as engine:
        event = await engine.load("a" * 64, unit_offset=0, slot=0)
        assert isinstance(event, LoadFailed)
        assert (event.code, event.reason) == (Code.UNAVAILABLE, "ADAPTER_STORE_AWAY")


def test_a_store_that_starts_a_little_later_is_no_news() -> None:
    assert [failures for failures in range(130) if is_news(failures)] == [0, 5, 10, 60, 120]
