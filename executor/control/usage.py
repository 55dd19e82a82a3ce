"""What each adapter was asked for and what its requests waited: counters of a bounded number of adapters."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

from executor.control.outputs import Admitted
from executor.control.request import BASE_DIGEST

OTHERS = "others"


@dataclass(slots=True, kw_only=True)
class AdapterUsage:
    """Since the start. `digest` is empty for the base model, "others" for all that have no entry.

    requests: those admitted. pool_hits: of those, the ones that found their adapter resident when they came.
    pool_loads: copies into the pool. Waits are sums over requests.
    """

    digest: str
    requests: int = 0
    pool_hits: int = 0
    pool_loads: int = 0
    slot_wait_seconds: float = 0.0
    load_wait_seconds: float = 0.0
    queue_wait_seconds: float = 0.0

    def add(self, other: AdapterUsage) -> None:
        self.requests += other.requests
        self.pool_hits += other.pool_hits
        self.pool_loads += other.pool_loads
        self.slot_wait_seconds += other.slot_wait_seconds
        self.load_wait_seconds += other.load_wait_seconds
        self.queue_wait_seconds += other.queue_wait_seconds


class UsageTable:
    """Keeps the busiest `entries` adapters apart, or a few more, and the rest in one sum.

    The engine's thread writes; another may read, and then sees approximate counts.
    """

    def __init__(self, entries: int = 1000) -> None:
        self._entries = entries
        self._usage: dict[str, AdapterUsage] = {}
        self._others = AdapterUsage(digest=OTHERS)

    def admitted(self, event: Admitted) -> None:
        usage = self._of(event.digest)
        usage.requests += 1
        # The base needs no pool.
        usage.pool_hits += event.was_resident and event.digest != BASE_DIGEST
        usage.slot_wait_seconds += event.slot_wait_seconds
        usage.load_wait_seconds += event.load_wait_seconds
        usage.queue_wait_seconds += event.queue_wait_seconds

    def loaded(self, digest: str) -> None:
        self._of(digest).pool_loads += 1

    def total(self) -> AdapterUsage:
        """The sum over all adapters, without the base model."""
        total = replace(self._others)
        for usage in list(self._usage.values()):
            if usage.digest != BASE_DIGEST:
                total.add(usage)
        return total

    def busiest(self, count: int) -> list[AdapterUsage]:
        """Those with the most requests, busiest first, then one entry for all others if there are any."""
        known = list(self._usage.values())
        listed = heapq.nlargest(min(count, self._entries), known, key=_requests)
        others = replace(self._others)
        shown = {usage.digest for usage in listed}
        for usage in known:
            if usage.digest not in shown:
                others.add(usage)
        if others.requests or others.pool_loads:
            listed.append(others)
        return listed

    def _of(self, digest: str) -> AdapterUsage:
        usage = self._usage.get(digest)
        if usage is None:
            if len(self._usage) >= 2 * self._entries:
                self._fold()
            usage = self._usage[digest] = AdapterUsage(digest=digest)
        return usage

    def _fold(self) -> None:
        kept = heapq.nlargest(self._entries, self._usage.values(), key=_requests)
        busiest = {usage.digest: usage for usage in kept}
        for digest, usage in self._usage.items():
            if digest == BASE_DIGEST:
                busiest[digest] = usage
            elif digest not in busiest:
                self._others.add(usage)
        self._usage = busiest


def _requests(usage: AdapterUsage) -> int:
    return usage.requests
