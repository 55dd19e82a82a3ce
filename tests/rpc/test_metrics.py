"""Metrics over HTTP: a scrape sees what the event loop counts at that moment."""

import asyncio
import urllib.error
import urllib.request

import pytest
from prometheus_client.core import CounterMetricFamily, Metric

from rpc.metrics import MetricsServer
from tests.support.waiting import WAIT_SECONDS


def _get(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=WAIT_SECONDS) as response:
        return response.read().decode()


async def test_a_scrape_sees_the_present_counts():
    count = 0

    async def gather() -> list[Metric]:
        return [CounterMetricFamily("lorikeet_things", "Things.", value=count)]

    server = MetricsServer(gather)
    address = await server.start("127.0.0.1:0")
    try:
        count = 41
        assert "lorikeet_things_total 41.0" in await asyncio.to_thread(_get, address)
        count = 42
        assert "lorikeet_things_total 42.0" in await asyncio.to_thread(_get, address)
    finally:
        await server.stop()
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(_get, address)


async def test_a_failing_gather_fails_the_scrape_alone():
    broken = True

    async def gather() -> list[Metric]:
        if broken:
            raise RuntimeError("broken")
        return [CounterMetricFamily("lorikeet_things", "Things.", value=1)]

    server = MetricsServer(gather)
    address = await server.start("127.0.0.1:0")
    try:
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            await asyncio.to_thread(_get, address)
        broken = False
        assert "lorikeet_things_total 1.0" in await asyncio.to_thread(_get, address)
    finally:
        await server.stop()


async def test_an_address_in_use_is_refused():
    async def gather() -> list[Metric]:
        return []

    first, second = MetricsServer(gather), MetricsServer(gather)
    address = await first.start("127.0.0.1:0")
    try:
        with pytest.raises(OSError, match="in use"):
            await second.start(address)
    finally:
        await first.stop()
        await second.stop()
