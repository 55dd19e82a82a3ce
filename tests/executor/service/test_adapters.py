"""Adapters through the whole executor, against a small real store: isolation, retirement, outages, leaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from executor.app import run
from executor.base.build import build_base
from executor.config import ExecutorConfig
from lorikeet.v1 import executor_pb2, executor_pb2_grpc
from rpc.channel import open_channel
from tests.support.executor_service import Connection, Running, executor_at, submit, write_model
from tests.support.executor_store import SmallStore
from tests.support.waiting import WAIT_SECONDS


@asynccontextmanager
async def served(folder: Path, **settings: Any) -> AsyncIterator[tuple[SmallStore, Running, Connection]]:
    """A store and an executor that knows it, with one connection."""
    store = SmallStore(folder, layout_of(folder, **settings))
    address = await store.start(f"unix:{folder}/store.sock")
    try:
        async with (
            executor_at(folder, store=address, arena_dir=folder, **settings) as running,
            running.connect() as connection,
        ):
            yield store, running, connection
    finally:
        await store.kill()


def layout_of(folder: Path, **settings: Any) -> Any:
    config = ExecutorConfig(
        model_dir=write_model(folder / "model"), store="unix:/s", runner="arithmetic", kv_pages=1, **settings
    )
    return build_base(config, lambda done, total: None).layout


async def cached_tokens(connection: Connection, request: int, prompt: list[int], digest: str) -> int:
    await connection.send(submit(request, prompt, adapter_digest=digest))
    await connection.until_over(request)
    answer = connection.answers[request]
    assert answer.admitted is not None, answer.failed
    return answer.admitted.cached_tokens


async def test_no_adapter_reads_the_prefix_of_another(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, running, connection):
        a, b, prompt = store.put("a"), store.put("b"), list(range(3, 70))
        cached = [
            await cached_tokens(connection, number, prompt, digest)
            for number, digest in enumerate((a, b, "", a, b, ""), start=1)
        ]
        assert cached == [0, 0, 0, 64, 64, 64]
        statistics = await running.until_empty()
        assert statistics.adapters_resident == 2
        pool = (
            statistics.pool_loads,
            statistics.pool_hits,
            statistics.pool_misses,
            statistics.pool_evictions,
        )
        assert pool == (2, 2, 2, 0)
        listed = (await running.statistics(adapters=10)).adapters
        assert [(usage.requests, usage.pool_loads, usage.pool_hits) for usage in listed if usage.digest] == [
            (2, 1, 1),
            (2, 1, 1),
        ]
        assert all(usage.load_wait_seconds > 0 for usage in listed if usage.digest)
        assert [usage.requests for usage in listed if not usage.digest] == [2]
        await store.until(lambda: store.leases == 0)


async def test_an_unknown_adapter_fails_alone_and_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, running, connection):
        a = store.put("a")
        await connection.send(submit(1, adapter_digest="f" * 64), submit(2, adapter_digest=a), submit(3))
        await connection.until_over(1, 2, 3)
        failed = connection.answers[1].failed
        assert failed is not None
        assert (failed.code, failed.reason, failed.message) == (5, "PACK_NOT_FOUND", "no such pack")
        assert len(connection.answers[2].token_ids) == len(connection.answers[3].token_ids) == 8
        await running.until_empty()


async def test_a_waiting_adapter_holds_no_pages_and_stops_nobody(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, running, connection):
        a = store.put("a")
        store.granting.clear()
        await connection.send(submit(1, adapter_digest=a))
        await store.until(lambda: store.acquires == [a])
        await connection.send(submit(2))
        await connection.until_over(2)
        statistics = await running.statistics()
        assert (statistics.requests_waiting, statistics.pages_held, statistics.adapters_arriving) == (1, 0, 1)
        store.granting.set()
        await connection.until_over(1)
        admitted = connection.answers[1].admitted
        assert admitted is not None
        assert 0 < admitted.adapter_wait_us <= admitted.queued_us


async def test_a_frontend_that_goes_while_its_adapter_comes_leaves_no_lease(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, running, _):
        a = store.put("a")
        store.granting.clear()
        async with running.connect() as other:
            await other.send(submit(1, adapter_digest=a))
            await store.until(lambda: store.leases == 1)
        await running.until(lambda statistics: statistics.requests_waiting == 0)
        store.granting.set()
        await running.until_empty()
        await store.until(lambda: store.leases == 0)


async def test_a_retired_adapter_gives_slot_and_pages_back_after_its_last_request(tmp_path: Path) -> None:
    async with served(tmp_path, arithmetic_step_seconds=0.005) as (store, running, connection):
        a = store.put("a")
        await connection.send(submit(1, [3] * 50, adapter_digest=a, max_tokens=40))
        while not connection.answers.get(1) or not connection.answers[1].token_ids:
            await connection.receive()
        store.retire(a)
        await connection.until_over(1)
        assert len(connection.answers[1].token_ids) == 40
        await store.until(lambda: store.retired == [a])
        statistics = await running.until_empty()
        assert (statistics.adapters_resident, statistics.pages_cached) == (0, 0)
        assert statistics.adapter_pool_bytes_free == statistics.adapter_pool_bytes


async def test_an_outage_of_the_store_is_felt_only_by_new_adapters(tmp_path: Path) -> None:
    async with served(tmp_path, store_patience_seconds=0.3) as (store, running, connection):
        a, b = store.put("a"), store.put("b")
        await store.until(lambda: len(store.streams) == 1)
        await cached_tokens(connection, 1, [3] * 20, a)
        await store.kill()
        await connection.send(submit(2, adapter_digest=a), submit(3, adapter_digest=b), submit(4))
        await connection.until_over(2, 4)
        assert len(connection.answers[2].token_ids) == len(connection.answers[4].token_ids) == 8
        await connection.until_over(3)
        failed = connection.answers[3].failed
        assert failed is not None
        assert (failed.code, failed.reason) == (14, "ADAPTER_STORE_AWAY")
        again = SmallStore(tmp_path, store.layout)
        again.packs = store.packs
        await again.start(f"unix:{tmp_path}/store.sock")
        await again.until(lambda: len(again.streams) == 1)
        assert await cached_tokens(connection, 5, [3] * 20, b) == 0
        await running.until_empty()
        await again.kill()


async def test_more_adapters_than_slots_take_turns(tmp_path: Path) -> None:
    async with served(tmp_path, adapter_slots=1) as (store, running, connection):
        digests = [store.put(letter) for letter in "abc"]
        for number in range(1, 13):
            await connection.send(submit(number, adapter_digest=digests[number % 3]))
        await connection.until_over(*range(1, 13))
        assert all(len(answer.token_ids) == 8 for answer in connection.answers.values())
        assert (await running.until_empty()).adapters_resident == 1
        await store.until(lambda: store.leases == 0)


async def test_an_executor_that_waits_for_its_store_can_be_stopped(tmp_path: Path) -> None:
    config = ExecutorConfig(
        model_dir=write_model(tmp_path / "model"),
        listen=f"unix:{tmp_path}/executor.sock",
        store=f"unix:{tmp_path}/nobody.sock",
        runner="arithmetic",
        kv_pages=1,
        store_patience_seconds=3600,
    )
    stop = asyncio.Event()
    async with asyncio.timeout(WAIT_SECONDS), open_channel(config.listen) as channel:
        serving = asyncio.create_task(run(config, stop=stop))
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        await stub.GetStatistics(executor_pb2.GetExecutorStatisticsRequest(), wait_for_ready=True)
        stop.set()
        await serving
