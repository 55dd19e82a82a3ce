"""What GetAdapterStatistics puts together, and what Prometheus is told."""

from pathlib import Path

import grpc
import pytest

from frontend.metrics import MOST_ADAPTERS, FrontendMetrics
from frontend.usage import OTHERS, Usage, UsageTable
from lorikeet.v1 import adapters_pb2, executor_pb2
from rpc.errors import from_rpc
from tests.support.frontend_harness import running_rig

A, B = "ab" * 32, "cd" * 32


async def test_what_the_executor_lists_and_what_was_asked_here_are_joined(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": A, "sql2": A, "poet": B}) as rig:
        for name in ("sql", "sql", "sql2", ""):
            await rig.generate(text="x", adapter=name, sampling={"max_tokens": 3})
        rig.store.warm = {A}
        rig.executor.statistics = executor_pb2.ExecutorStatistics(
            adapters=[
                executor_pb2.ExecutorAdapter(digest=B, running=2, requests=9, is_resident=True, pool_loads=1)
            ],
            adapters_resident=1,
            adapter_pool_bytes=1000,
            adapter_pool_bytes_free=400,
            pool_hits=5,
        )
        answer = await rig.adapters.GetAdapterStatistics(adapters_pb2.GetAdapterStatisticsRequest())
        first, second, third = answer.adapters
        assert (first.digest, list(first.names), first.running, first.requests) == (B, ["poet"], 2, 9)
        assert (second.digest, sorted(second.names)) == (A, ["sql", "sql2"])
        assert (second.requests, second.generated_tokens, second.is_warm) == (3, 9, True)
        assert (third.digest, third.requests) == ("", 1)
        assert not first.is_warm
        assert [tier.tier for tier in answer.tiers] == ["memory", "pool"]
        assert (answer.tiers[1].bytes, answer.tiers[1].hits) == (600, 5)

        one = await rig.adapters.GetAdapterStatistics(adapters_pb2.GetAdapterStatisticsRequest(limit=1))
        assert [usage.digest for usage in one.adapters] == [B]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.adapters.GetAdapterStatistics(adapters_pb2.GetAdapterStatisticsRequest(limit=5000))
        assert from_rpc(caught.value).reason == "LIMIT"


async def test_a_request_that_finds_no_place_is_counted(model_folder: Path):
    async with running_rig(model_folder, max_requests=1) as rig:
        with pytest.raises(grpc.aio.AioRpcError):
            await rig.generate(text="x", n=2)
        answer = await rig.adapters.GetAdapterStatistics(adapters_pb2.GetAdapterStatisticsRequest())
        assert [(usage.digest, usage.requests) for usage in answer.adapters] == [("", 1)]


async def test_metrics_are_bounded_and_add_up(model_folder: Path):
    async with running_rig(model_folder) as rig:
        usage = UsageTable()
        for number in range(3 * MOST_ADAPTERS):
            usage.count(f"{number:064x}", Usage(requests=1, generated_tokens=2), first_token_seconds=0.01)
        metrics = FrontendMetrics(usage=usage, catalog=rig.frontend.catalog, queues=lambda: {"flights": 3})
        families = {family.name: family for family in await metrics.gather()}
    requests = families["lorikeet_requests"].samples
    assert len(requests) == MOST_ADAPTERS + 1
    assert sum(sample.value for sample in requests) == 3 * MOST_ADAPTERS
    assert requests[-1].labels["adapter"] == OTHERS
    buckets = [s for s in families["lorikeet_first_token_seconds"].samples if s.name.endswith("_bucket")]
    assert buckets[-1].value == 3 * MOST_ADAPTERS
    assert [s.value for s in buckets] == sorted(s.value for s in buckets)
    assert families["lorikeet_frontend_held"].samples[0].value == 3


async def test_what_is_left_over_never_falls(model_folder: Path):
    async with running_rig(model_folder) as rig:
        usage = UsageTable()
        for number in range(MOST_ADAPTERS):
            usage.count(f"{number:064x}", Usage(requests=2), first_token_seconds=None)
        usage.count(A, Usage(requests=1, generated_tokens=50), first_token_seconds=None)
        metrics = FrontendMetrics(usage=usage, catalog=rig.frontend.catalog, queues=dict)
        told = []
        for _ in range(2):
            families = {family.name: family for family in await metrics.gather()}
            told.append(families["lorikeet_generated_tokens"].samples[-1].value)
            # Comes among the busiest, and takes its tokens with it.
            usage.count(A, Usage(requests=5), first_token_seconds=None)
    assert told == [50, 50]


async def test_failures_count(model_folder: Path):
    async with running_rig(model_folder) as rig:
        rig.executor.refuse = lambda submit: executor_pb2.Failed(
            request=submit.request, code=3, reason="BAD", message="refused"
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await rig.generate(text="x")
        answer = await rig.adapters.GetAdapterStatistics(adapters_pb2.GetAdapterStatisticsRequest())
        assert [(usage.digest, usage.requests) for usage in answer.adapters] == [("", 1)]
