"""Leases and packs over gRPC, against a real store and its arena's file."""

import asyncio
import threading

import grpc
import pytest

from adapter_store.tiers.objects import open_object
from lorikeet.v1 import store_pb2
from rpc.errors import from_rpc
from tests.support.store_ready import running_ready
from tests.support.store_server import ExecutorClient, error_of, eventually
from tests.support.waiting import WAIT_SECONDS


@pytest.fixture
async def ready(tmp_path):
    async with running_ready(tmp_path) as ready:
        yield ready


async def test_a_lease_leads_to_the_packs_bytes(ready):
    digest = await ready.load("a")
    executor = await ready.executor()
    grant = await executor.acquire(1, digest)
    assert (grant.lease, grant.manifest.digest, grant.manifest.layout_digest) == (1, digest, ready.layout)
    assert grant.pack_offset == grant.header_offset + 128
    assert executor.copy(grant) == ready.pack_of(digest)
    await ready.leases(1)
    await executor.release(1)
    await ready.leases(0)
    await ready.arena_leases(0)


async def test_a_digest_that_nobody_loaded_is_refused(ready):
    executor = await ready.executor()
    for digest in ("0" * 64, "x", "", "A" * 64):
        refusal = await executor.acquire(1, digest)
        assert (refusal.code, refusal.reason) == (5, "UNKNOWN_DIGEST")
    # A refused number can be used again.
    assert (await executor.acquire(1, await ready.load("a"))).lease == 1


async def test_a_stream_takes_its_leases_with_it(ready):
    digest = await ready.load("a")
    first, second = await ready.executor(), await ready.executor()
    for lease in range(3):
        await first.acquire(lease, digest)
    await second.acquire(1, digest)
    await ready.leases(4)
    first.call.cancel()
    await ready.leases(1)
    await second.call.done_writing()
    await ready.leases(0)
    await eventually(lambda: len(ready.store.executors) == 0)
    await ready.arena_leases(0)


async def test_a_question_can_be_taken_back(ready, monkeypatch):
    digest = await ready.load("a")
    await ready.running.settled()
    ready.store.warm.drop(digest)
    go = threading.Event()
    find = ready.store._disk.object_path
    monkeypatch.setattr(ready.store._disk, "object_path", lambda key: (go.wait(WAIT_SECONDS), find(key))[1])
    executor = await ready.executor()
    await executor.ask(7, digest)
    await ready.leases(1)
    await executor.release(7)
    await ready.leases(0)
    await executor.ask(7, digest)
    go.set()
    assert (await executor.next()).lease == 7
    await ready.leases(1)
    await ready.arena_leases(1)


async def test_a_load_may_bring_what_a_lease_was_about_to(ready, monkeypatch):
    digest = await ready.load("a")
    await ready.running.settled()
    ready.store.warm.drop(digest)
    go, begun = threading.Event(), threading.Event()

    def slowly(*arguments):
        begun.set()
        go.wait(WAIT_SECONDS)
        return open_object(*arguments)

    monkeypatch.setattr("adapter_store.tiers.making.open_object", slowly)
    executor = await ready.executor()
    await executor.ask(1, digest)
    await asyncio.to_thread(begun.wait, 20)
    source = ready.running.config.roots[0] / "a-0-4"
    assert (await ready.running.load("b", source)).adapter.digest == digest
    go.set()
    assert executor.copy(await executor.next()) == ready.pack_of(digest)
    assert ready.store.statistics().arena.packs == 1


@pytest.mark.parametrize(
    "what", ["lease twice", "no hello", "second hello", "unknown layout", "empty", "nested batch"]
)
async def test_streams_that_break_the_protocol_are_ended(ready, what):
    executor = ExecutorClient(ready.running, ready.layout if what != "unknown layout" else "1" * 64)
    if what == "no hello":
        await executor.release(1)
    else:
        await executor.start()
    match what:
        case "lease twice":
            digest = await ready.load("a")
            await executor.acquire(1, digest)
            await executor.ask(1, digest)
        case "second hello":
            await executor.start()
        case "empty":
            await executor.call.write(store_pb2.LeaseRequest())
        case "nested batch":
            nested = store_pb2.LeaseRequest(batch=store_pb2.LeaseBatch())
            batch = store_pb2.LeaseBatch(requests=[nested])
            await executor.call.write(store_pb2.LeaseRequest(batch=batch))
    reason = {
        "lease twice": "LEASE_IN_USE",
        "no hello": "NO_HELLO",
        "second hello": "SECOND_HELLO",
        "unknown layout": "UNKNOWN_LAYOUT",
        "empty": "UNKNOWN_MESSAGE",
        "nested batch": "NESTED_BATCH",
    }[what]
    assert (await error_of(executor.call)).reason == reason
    await ready.leases(0)
    await ready.arena_leases(0)


async def test_releasing_what_is_not_held_is_harmless(ready):
    executor = await ready.executor()
    await executor.release(99)
    assert (await executor.acquire(1, await ready.load("a"))).lease == 1


async def test_a_moved_name_retires_the_old_version_in_executors(ready):
    executor = await ready.executor()
    old = await ready.load("a")
    grant = await executor.acquire(1, old)
    new = await ready.load("a", seed=1)
    retire = await executor.next()
    assert retire.digest == old
    # Requests in flight finish on the old version: it can be leased until the executor has dropped it.
    again = await executor.acquire(2, old)
    assert executor.copy(again) == executor.copy(grant)
    await executor.retired(old)
    await eventually(lambda: not ready.store.catalog.retiring)
    # Its leases hold the pack in place all the same.
    executor.copy(grant)
    await ready.arena_leases(2)
    for lease in (1, 2):
        await executor.release(lease)
    await eventually(lambda: ready.store.statistics().arena.packs == 1)
    refusal = await executor.acquire(3, old)
    assert refusal.reason == "UNKNOWN_DIGEST"
    assert (await executor.acquire(4, new)).manifest.digest == new
    # On disk it stays, for a rollback.
    assert ready.store.statistics().disk.objects == 2


async def test_a_freed_pack_tells_its_late_readers(ready):
    executor = await ready.executor()
    digest = await ready.load("a")
    grant = await executor.acquire(1, digest)
    await executor.release(1)
    await ready.running.unload("a")
    await executor.retired((await executor.next()).digest)
    await eventually(lambda: ready.store.statistics().arena.packs == 0)
    with pytest.raises(AssertionError):
        executor.copy(grant)


async def test_an_executor_that_comes_late_is_told_what_retires(ready):
    first = await ready.executor()
    await first.acquire(1, await ready.load("a"))
    await ready.running.unload("a")
    digest = (await first.next()).digest
    second = await ready.executor()
    assert (await second.next()).digest == digest
    await first.retired(digest)
    await second.retired("0" * 64)
    assert ready.store.catalog.retiring == {digest}
    await second.retired(digest)
    await eventually(lambda: not ready.store.catalog.retiring)


async def test_what_retired_while_it_was_asked_for_is_unknown_not_lost(ready):
    executor = await ready.executor()
    digest = await ready.load("a")
    await ready.running.settled()
    await ready.running.unload("a")
    # As far as a retirement gets before its store is killed.
    ready.store.warm.drop(digest)
    ready.store._disk.discard(ready.store._disk.set_aside(digest))
    assert (await executor.acquire(1, digest)).reason == "UNKNOWN_DIGEST"
    assert ready.store.catalog.retiring == {digest}


async def test_a_full_arena_evicts_the_idle_and_waits_for_the_leased(ready):
    digests = [await ready.load(f"n{seed}", seed, rank=64) for seed in range(32)]
    pack_bytes = len(ready.pack_of(digests[0]))
    fits = ready.store.statistics().arena.capacity_bytes // (pack_bytes + 128)
    assert fits < len(digests)
    executor = await ready.executor()
    for lease in range(fits):
        assert (await executor.acquire(lease, digests[lease])).lease == lease
    await executor.ask(100, digests[-1])
    await ready.leases(fits + 1)
    await ready.arena_leases(fits)
    await executor.release(3)
    grant = await executor.next()
    assert grant.lease == 100
    assert executor.copy(grant) == ready.pack_of(digests[-1])
    ready.store.check_integrity()


async def test_a_demand_that_comes_with_its_hint_waits_for_room_all_the_same(ready):
    digests = [await ready.load(f"n{seed}", seed, rank=64) for seed in range(32)]
    await ready.running.settled()
    warm, opened = ready.store.warm, ready.store.counters.disk
    executor, hits = await ready.executor(), opened.hits
    wanted = next(digest for digest in digests if digest not in warm.warm_digests())
    for lease, digest in enumerate(sorted(warm.warm_digests())):
        await executor.acquire(lease, digest)

    async def release_when_room_is_wanted() -> None:
        await eventually(lambda: opened.hits > hits)
        await executor.release(3)

    releasing = asyncio.ensure_future(release_when_room_is_wanted())
    layout = ready.store.layouts.get(ready.layout)
    warm.prefetch(wanted, layout)
    # At once: the hint has not had its first turn yet.
    pack = await warm.acquire(wanted, layout)
    warm.release(pack)
    await releasing


async def test_many_executors_copy_right_bytes_while_the_arena_churns(ready):
    digests = [await ready.load(f"n{seed}", seed, rank=64) for seed in range(40)]
    packs = {digest: ready.pack_of(digest) for digest in digests}
    assert sum(map(len, packs.values())) > 1.3 * ready.store.statistics().arena.capacity_bytes

    async def use(seed: int) -> None:
        executor, grants = await ready.executor(), {}
        for step in range(25):
            digest = digests[(seed * 5 + step * (seed + 1)) % len(digests)]
            if digest in grants:
                assert executor.copy_unasked(grants[digest]) in (None, packs[digest])
                await executor.used(digest)
            grant = grants[digest] = await executor.acquire(step, digest)
            assert executor.copy(grant) == packs[digest]
            await executor.release(step)
        await executor.call.done_writing()

    await asyncio.gather(*(use(seed) for seed in range(6)))
    await ready.leases(0)
    await ready.arena_leases(0)
    assert ready.store.statistics().arena.evictions > 20
    ready.store.check_integrity()


async def test_what_is_copied_unasked_counts_as_asked_for(ready):
    digest = await ready.load("a")
    executor, counts = await ready.executor(), ready.store.counters.memory
    hits = counts.hits
    for used in ("x", "0" * 64, digest, digest):
        await executor.used(used)
    await eventually(lambda: counts.hits == hits + 2)
    await ready.arena_leases(0)
    assert not executor.told
    ready.store.check_integrity()


async def test_hints_bring_packs_in_and_never_hurt(ready):
    digest = await ready.load("a")
    await ready.running.settled()
    ready.store.warm.drop(digest)
    executor = await ready.executor()
    for hint in ("x", "0" * 64, digest, digest):
        await executor.call.write(store_pb2.LeaseRequest(prefetch=store_pb2.PrefetchPack(digest=hint)))
    await eventually(lambda: ready.store.statistics().arena.packs == 1)


async def test_too_many_leases_of_one_stream_are_refused(ready, monkeypatch):
    monkeypatch.setattr("adapter_store.peers.executors._MAX_LEASES", 3)
    digest = await ready.load("a")
    executor = await ready.executor()
    for lease in range(3):
        await executor.acquire(lease, digest)
    refusal = await executor.acquire(3, digest)
    assert (refusal.code, refusal.reason) == (8, "TOO_MANY_LEASES")
    await executor.release(0)
    assert (await executor.acquire(3, digest)).manifest.digest == digest


async def test_an_executor_that_does_not_read_is_cut_off(ready, monkeypatch):
    monkeypatch.setattr("adapter_store.peers.executors._QUEUED_MESSAGES", 2)
    executor = await ready.executor()
    await eventually(lambda: len(ready.store.executors) == 1)
    (session,) = ready.store.executors._sessions
    for _ in range(5):
        session.retire("0" * 64)
    error = await error_of_stream(executor)
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "FELL_BEHIND")
    await eventually(lambda: len(ready.store.executors) == 0)


async def error_of_stream(executor: ExecutorClient):
    async def drain() -> None:
        while await executor.call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drain()
    return from_rpc(caught.value)


async def test_what_is_granted_together_comes_in_one_message(ready):
    digests = [await ready.load(f"n{seed}", seed) for seed in range(3)]
    executor = await ready.executor()
    asks = [
        store_pb2.LeaseRequest(acquire=store_pb2.AcquireLease(lease=lease, digest=digest))
        for lease, digest in enumerate(digests)
    ]
    await executor.call.write(store_pb2.LeaseRequest(batch=store_pb2.LeaseBatch(requests=asks)))
    response = await executor.call.read()
    grants = [each.grant for each in response.batch.responses]
    assert [(grant.lease, grant.manifest.digest) for grant in grants] == list(enumerate(digests))
