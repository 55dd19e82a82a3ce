"""What the tiers have done since the start: plain sums, for whoever exports them."""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)
"""Upper bounds of the histograms' buckets, seconds; one more bucket takes the rest."""


@dataclass(slots=True)
class Histogram:
    """Seconds by bucket (not cumulative), and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


@dataclass(slots=True)
class TierCounts:
    """Asked for and found, or not; brought in; put out to make room."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0


class Counters:
    """Counts of the disk and memory tiers, and seconds by stage of a load. Belongs to the event loop."""

    def __init__(self) -> None:
        self.disk = TierCounts()
        self.memory = TierCounts()
        # Stages: copy, fill, keep (of a load from its source); open_object, fill_object (from disk).
        self.stages: dict[str, Histogram] = {}

    def observe(self, stage: str, seconds: float) -> None:
        self.stages.setdefault(stage, Histogram()).observe(seconds)


class Stopwatch:
    """Times the stages of one load."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._started = perf_counter()
        self._laps: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since the start."""
        return perf_counter() - self._started

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            self._laps[name] = perf_counter() - began
            self._counters.observe(name, self._laps[name])

    def __str__(self) -> str:
        return ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in self._laps.items())
