"""A store's metrics: what its tiers hold and did, and how long the stages of loads take."""

from collections.abc import Callable, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from adapter_store.service.statistics import StoreStatistics, tier_usages
from adapter_store.tiers.counters import BOUNDS, Counters, Histogram
from lorikeet.v1 import adapters_pb2

_HELD = (
    "adapters",
    "retiring",
    "pending_loads",
    "uploads",
    "running_work",
    "lost_reads",
    "coming_packs",
    "followers",
    "watchers",
    "executors",
    "leases",
)
_TIER_GAUGES = ("entries", "bytes", "capacity_bytes", "pinned_bytes")
_TIER_COUNTERS = ("hits", "misses", "loads", "evictions")


class StoreMetrics:
    """Reads one store's counts. Belongs to the event loop."""

    def __init__(self, statistics: Callable[[], StoreStatistics], counters: Counters) -> None:
        self._statistics = statistics
        self._counters = counters

    async def gather(self) -> list[Metric]:
        """All metric families at this moment."""
        now = self._statistics()
        held = GaugeMetricFamily("lorikeet_store_held", "What is held or runs now.", labels=["what"])
        for name in _HELD:
            held.add_metric([name], getattr(now, name))
        revision = GaugeMetricFamily("lorikeet_catalog_revision", "Of the catalog.", value=now.revision)
        tiers = tier_usages(now, self._counters)
        return [held, revision, *_tiers(tiers), load_seconds(self._counters.stages)]


def _tiers(tiers: list[adapters_pb2.TierUsage]) -> list[Metric]:
    families: list[Metric] = []
    for family, names in ((GaugeMetricFamily, _TIER_GAUGES), (CounterMetricFamily, _TIER_COUNTERS)):
        for name in names:
            metric = family(f"lorikeet_tier_{name}", f"The tier's {name.replace('_', ' ')}.", labels=["tier"])
            for tier in tiers:
                metric.add_metric([tier.tier], getattr(tier, name))
            families.append(metric)
    return families


def load_seconds(stages: Mapping[str, Histogram]) -> Metric:
    """One histogram, labelled by stage."""
    bounds = [*map(str, BOUNDS), "+Inf"]
    family = HistogramMetricFamily(
        "lorikeet_adapter_load_seconds", "Seconds of a load, by stage.", labels=["stage"]
    )
    for stage, histogram in stages.items():
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        family.add_metric([stage], buckets, histogram.seconds)
    return family
