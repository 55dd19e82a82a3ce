"""What a store tells Prometheus, over HTTP."""

import asyncio
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from adapter_store.service.metrics import StoreMetrics, load_seconds
from adapter_store.tiers.counters import BOUNDS, Counters
from rpc.metrics import MetricsServer
from tests.support.store_ready import running_ready
from tests.support.waiting import WAIT_SECONDS


def _scrape(address: str) -> dict[tuple[str, tuple[str, ...]], float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=WAIT_SECONDS) as response:
        text = response.read().decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_scrape_tells_what_the_store_holds_and_did(tmp_path: Path) -> None:
    async with running_ready(tmp_path) as ready:
        await ready.load("a")
        store = ready.running.store
        server = MetricsServer(StoreMetrics(store.statistics, store.counters).gather)
        address = await server.start("127.0.0.1:0")
        try:
            await ready.running.settled()
            now = store.statistics()
            samples = await asyncio.to_thread(_scrape, address)
        finally:
            await server.stop()
    assert now.adapters > 0
    assert samples["lorikeet_store_held", ("adapters",)] == now.adapters
    assert samples["lorikeet_catalog_revision", ()] == now.revision
    assert samples["lorikeet_tier_entries", ("disk",)] == now.disk.objects > 0
    assert samples["lorikeet_tier_bytes", ("memory",)] == now.arena.used_bytes > 0
    counts = {key: value for key, value in samples.items() if key[0] == "lorikeet_adapter_load_seconds_count"}
    assert counts
    assert all(value >= 1 for value in counts.values())


def test_buckets_are_cumulative() -> None:
    counters = Counters()
    for seconds in (0.0005, 0.15, 0.15, 1000.0):
        counters.observe("copy", seconds)
    family = load_seconds(counters.stages)
    buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
    assert buckets[0] == 1
    assert buckets[BOUNDS.index(0.2)] == 3
    assert buckets[-1] == 4
