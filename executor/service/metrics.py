"""An executor's metrics, from the statistics that it gives anyone who asks."""

from collections.abc import Callable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from executor.control.usage import OTHERS
from lorikeet.v1 import executor_pb2 as pb
from rpc.metrics import Rising

# Each adapter is five time series or so; those beyond are one entry, "others".
MOST_ADAPTERS = 200

_HELD = (
    "requests_waiting",
    "requests_running",
    "frontends",
    "pages",
    "pages_held",
    "pages_cached",
    "host_pages_used",
    "adapters_resident",
    "adapters_arriving",
    "adapter_pool_bytes",
    "adapter_pool_bytes_free",
    "leases",
    "commands_queued",
    "outbox_bytes",
)
_COUNTED = (
    "steps",
    "preemptions",
    "pool_loads",
    "pool_hits",
    "pool_misses",
    "pool_evictions",
    "host_pages_saved",
    "host_pages_restored",
)
_BY_ADAPTER = {
    "requests": "Requests admitted.",
    "pool_loads": "Copies into the adapter pool.",
    "pool_hits": "Requests that found their adapter resident.",
}
_WAITS = ("slot", "load", "queue")


class ExecutorMetrics:
    """Reads one executor's statistics, with as many adapters as are told apart."""

    def __init__(self, statistics: Callable[[int], pb.ExecutorStatistics]) -> None:
        self._statistics = statistics
        self._rising = Rising()

    async def gather(self) -> list[Metric]:
        """All metric families at this moment."""
        statistics = self._statistics(MOST_ADAPTERS)
        held = GaugeMetricFamily("lorikeet_executor_held", "What is held or queued now.", labels=["what"])
        for name in _HELD:
            held.add_metric([name], getattr(statistics, name))
        counted: list[Metric] = [
            CounterMetricFamily(
                f"lorikeet_executor_{name}", "Since the start.", value=getattr(statistics, name)
            )
            for name in _COUNTED
        ]
        return [held, *counted, *self._by_adapter(statistics)]

    def _by_adapter(self, statistics: pb.ExecutorStatistics) -> list[Metric]:
        families: list[Metric] = []
        for name, help_ in _BY_ADAPTER.items():
            family = CounterMetricFamily(f"lorikeet_adapter_{name}", help_, labels=["digest"])
            for adapter in statistics.adapters:
                family.add_metric([adapter.digest], self._value(adapter, name))
            families.append(family)
        waits = CounterMetricFamily(
            "lorikeet_adapter_wait_seconds",
            "Seconds before the first step: waits for a slot, for the weights, for pages or a turn.",
            labels=["digest", "for"],
        )
        for adapter in statistics.adapters:
            for kind in _WAITS:
                waits.add_metric([adapter.digest, kind], self._value(adapter, f"{kind}_wait_seconds"))
        return [*families, waits]

    def _value(self, adapter: pb.ExecutorAdapter, name: str) -> float:
        value = getattr(adapter, name)
        return self._rising.most(name, value) if adapter.digest == OTHERS else value
