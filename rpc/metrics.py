"""Metrics over HTTP in the Prometheus text format, gathered where they are kept.

A scrape arrives on a thread of its own and asks the event loop, which owns what is counted, for a snapshot.
Nothing is counted twice, and nothing is computed between scrapes.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rpc.addresses import binding_error

log = logging.getLogger(__name__)

Gather = Callable[[], Awaitable[list[Metric]]]

_SCRAPE_SECONDS = 5.0


class MetricsServer:
    """Serves `GET /metrics` while a service runs.

    Args:
        gather: called on the event loop for each scrape.
    """

    def __init__(self, gather: Gather) -> None:
        self._gather = gather
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    async def start(self, address: str) -> str:
        """Binds `host:port` (port 0: any) and returns the address.

        Raises OSError when it cannot be bound now, ValueError when it never can be.
        """
        host, _, port = address.rpartition(":")
        registry = CollectorRegistry()
        registry.register(_LoopCollector(asyncio.get_running_loop(), self._gather))
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry=registry)
        except OSError as error:
            raise binding_error(f"cannot serve metrics (metrics_listen) on {address}", error) from error
        bound = f"{host}:{self._server.server_port}"
        log.info("metrics on http://%s/metrics", bound)
        return bound

    async def stop(self) -> None:
        """Ends the server; a scrape in flight gets its answer or none."""
        if self._server is None or self._thread is None:
            return
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)


class Rising:
    """Told as counters, what is left over when the busiest are told apart.

    That falls when one of them comes from there with more than its place had, and Prometheus takes a counter
    that falls for one that began anew: it would count all of it again.
    """

    def __init__(self) -> None:
        self._most: dict[str, float] = {}

    def most(self, name: str, value: float) -> float:
        """The largest value of a name so far."""
        self._most[name] = most = max(value, self._most.get(name, 0.0))
        return most


class _LoopCollector(Collector):
    def __init__(self, loop: asyncio.AbstractEventLoop, gather: Gather) -> None:
        self._loop = loop
        self._gather = gather

    def describe(self) -> Iterable[Metric]:
        # Without this the registry would scrape once, on the loop's own thread, to learn the names.
        return ()

    def collect(self) -> Iterable[Metric]:
        async def snapshot() -> list[Metric]:
            return await self._gather()

        return asyncio.run_coroutine_threadsafe(snapshot(), self._loop).result(_SCRAPE_SECONDS)
