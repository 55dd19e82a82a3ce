"""What adapters did, as operators see it: known traffic over real services, with one slot to wait for."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from cli.serving.places import reserve
from lorikeet.v1 import adapters_pb2 as pb
from lorikeet.v1 import store_pb2, store_pb2_grpc
from rpc.channel import open_channel
from tests.support.answers import Answer, question
from tests.support.cli_runner import lorikeet
from tests.support.service_stack import DEMO, Stack, scrape, stack_at
from tests.support.waiting import WAIT_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = "What is the password?"
NAMES = {"attention": "attention", "mlp": "mlp", "twin": "mlp"}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was asked, and what the services say of it afterwards."""

    stack: Stack
    answers: dict[str, list[Answer]]
    digests: dict[str, str]
    usages: dict[str, pb.AdapterUsage]
    tiers: dict[str, pb.TierUsage]
    frontend: dict[tuple[str, str, str], float]
    executor: dict[tuple[str, str, str], float]

    def tokens(self, name: str) -> tuple[int, int]:
        usages = [answer.summary.usage for answer in self.answers[name] if answer.summary is not None]
        return sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Seen]:
    folder = tmp_path_factory.mktemp("stack")
    async with stack_at(folder) as stack:
        loaded = [await stack.load(name, DEMO / "adapters" / source) for name, source in NAMES.items()]
    digests = {adapter.name: adapter.digest for adapter in loaded}
    # Nothing is in memory any more: all adapters are cold.
    shutil.rmtree(folder / "arena")
    with contextlib.ExitStack() as held:
        of_executor = reserve("127.0.0.1:0", held)
        flags = ["--adapter-slots", "1", "--metrics-listen", of_executor]
        async with stack_at(folder, executor_flags=flags) as stack:
            answers = await _traffic(stack)
            await stack.until_empty()
            request = pb.GetAdapterStatisticsRequest()
            response = await stack.adapters.GetAdapterStatistics(request, timeout=WAIT_SECONDS)
            yield Seen(
                stack=stack,
                answers=answers,
                digests=digests,
                usages={usage.digest: usage for usage in response.adapters},
                tiers={tier.tier: tier for tier in response.tiers},
                frontend=_samples(await asyncio.to_thread(scrape, stack.metrics)),
                executor=_samples(await asyncio.to_thread(scrape, of_executor)),
            )


async def _traffic(stack: Stack) -> dict[str, list[Answer]]:
    """A cold adapter and twice the resident one; a warm one; then one that waits for the other's slot."""

    async def ask(name: str, **sampling: object) -> Answer:
        return await stack.answer(question(ASK, name, **{"max_tokens": 4, **sampling}))

    answers: dict[str, list[Answer]] = {"": [await ask(""), await ask("")]}
    answers["attention"] = [await ask("attention") for _ in range(3)]
    # The store alone: the executor, which frontends tell too, would ask for a lease at once.
    async with open_channel(stack.store.address) as channel:
        catalog = store_pb2_grpc.CatalogServiceStub(channel)
        await catalog.Prefetch(pb.PrefetchAdapterRequest(adapter="mlp"), timeout=WAIT_SECONDS)
    # A pack counts as one of the arena's while it is being written, as warm when it can be leased.
    listed = await stack.adapters.GetAdapter(pb.GetAdapterRequest(name="mlp"), timeout=WAIT_SECONDS)
    asked = store_pb2.GetPackStatisticsRequest(digests=[listed.digest])
    async with asyncio.timeout(WAIT_SECONDS):
        while not (await stack.pack_stub.GetStatistics(asked, timeout=WAIT_SECONDS)).warm_digests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    answers["mlp"] = [await ask("mlp")]
    twin, attention = await stack.answer_together(
        [question(ASK, "twin", max_tokens=100, ignore_eos=True), question(ASK, "attention", max_tokens=4)]
    )
    answers["mlp"].append(twin)
    answers["attention"].append(attention)
    return answers


def _samples(text: str) -> dict[tuple[str, str, str], float]:
    """Metric, its digest or what it is of, and the kind of wait; to its value."""
    return {
        (
            sample.name,
            sample.labels.get("digest", sample.labels.get("what", "")),
            sample.labels.get("for", ""),
        ): (sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def test_requests_and_tokens_are_those_that_were_asked_for(seen: Seen) -> None:
    for name, names in (("", []), ("attention", ["attention"]), ("mlp", ["mlp", "twin"])):
        usage = seen.usages[seen.digests.get(name, "")]
        assert usage.requests == len(seen.answers[name]), name
        assert (usage.prompt_tokens, usage.generated_tokens) == seen.tokens(name), name
        assert (usage.running, usage.waiting) == (0, 0)
        assert sorted(usage.names) == names
    assert set(seen.usages) == {"", seen.digests["attention"], seen.digests["mlp"]}


async def test_hits_loads_and_waits_are_told_apart(seen: Seen) -> None:
    attention, mlp, base = (seen.usages[seen.digests.get(name, "")] for name in ("attention", "mlp", ""))
    assert (attention.pool_loads, attention.pool_hits) == (2, 2)
    assert (mlp.pool_loads, mlp.pool_hits) == (1, 1)
    assert (base.pool_loads, base.pool_hits) == (0, 0)
    assert attention.slot_wait_seconds > 0
    assert attention.load_wait_seconds > 0
    assert mlp.load_wait_seconds > 0
    assert base.slot_wait_seconds == base.load_wait_seconds == 0
    assert (attention.is_resident, mlp.is_resident) == (True, False)
    assert attention.is_warm
    assert mlp.is_warm


async def test_tiers_count_their_own_hits(seen: Seen) -> None:
    pool, memory, disk = (seen.tiers[name] for name in ("pool", "memory", "disk"))
    assert (pool.entries, pool.loads, pool.hits, pool.misses, pool.evictions) == (1, 3, 3, 3, 2)
    assert 0 < pool.bytes < pool.capacity_bytes
    # Cold the first time; then prefetched, and still there.
    assert (memory.entries, memory.hits, memory.misses, memory.evictions) == (2, 2, 1, 0)
    assert (disk.entries, disk.misses) == (2, 0)


async def test_metrics_say_the_same(seen: Seen) -> None:
    for name in ("", "attention", "mlp"):
        digest = seen.digests.get(name, "")
        prompt, generated = seen.tokens(name)
        usage = seen.usages[digest]
        assert seen.frontend["lorikeet_requests_total", digest, ""] == usage.requests
        assert seen.frontend["lorikeet_prompt_tokens_total", digest, ""] == prompt
        assert seen.frontend["lorikeet_generated_tokens_total", digest, ""] == generated
        assert seen.frontend["lorikeet_request_failures_total", digest, ""] == 0
        assert seen.executor["lorikeet_adapter_requests_total", digest, ""] == usage.requests
        for kind in ("slot", "load", "queue"):
            told = seen.executor["lorikeet_adapter_wait_seconds_total", digest, kind]
            assert told == pytest.approx(getattr(usage, f"{kind}_wait_seconds"))
    pool = seen.tiers["pool"]
    for what in ("hits", "misses", "loads", "evictions"):
        assert seen.executor[f"lorikeet_executor_pool_{what}_total", "", ""] == getattr(pool, what)
    assert seen.executor["lorikeet_executor_held", "requests_running", ""] == 0
    assert seen.frontend["lorikeet_first_token_seconds_count", "", ""] == 8


async def test_top_shows_them(seen: Seen) -> None:
    target = ("--target", seen.stack.frontend.address)
    done = await asyncio.to_thread(lorikeet, "adapters", "top", "--once", *target)
    rows = {cells[0]: cells for line in done.out.splitlines() if len(cells := line.split("\t")) > 1}
    assert set(rows) == {"ADAPTER", "(base)", "attention", "mlp +1"}
    assert rows["attention"][1:5] == ["pool", "0", "0", "4"]
    assert rows["mlp +1"][1:5] == ["memory", "0", "0", "2"]
    assert "pool:    1 adapter, " in done.out
