"""What a store holds and has done, for people, tests and the services that ask."""

from collections.abc import Iterable
from dataclasses import dataclass

from adapter_store.tiers.counters import Counters
from adapter_store.tiers.disk import DiskStatistics
from adapter_store.tiers.pack import ArenaStatistics
from lorikeet.v1 import adapters_pb2, store_pb2


@dataclass(frozen=True, kw_only=True)
class StoreStatistics:
    """Sizes of everything that is bounded or counted."""

    adapters: int
    retiring: int
    revision: int
    pending_loads: int
    uploads: int
    running_work: int
    lost_reads: int
    coming_packs: int
    followers: int
    watchers: int
    executors: int
    leases: int
    arena: ArenaStatistics
    disk: DiskStatistics


def pack_statistics(
    now: StoreStatistics, counters: Counters, warm_digests: Iterable[str]
) -> store_pb2.PackStatistics:
    """The answer to GetStatistics."""
    return store_pb2.PackStatistics(
        executors=now.executors,
        leases=now.leases,
        packs_warm=now.arena.packs,
        arena_bytes=now.arena.capacity_bytes,
        arena_bytes_used=now.arena.used_bytes,
        packs_cold=now.disk.objects,
        tiers=tier_usages(now, counters),
        warm_digests=warm_digests,
    )


def tier_usages(now: StoreStatistics, counters: Counters) -> list[adapters_pb2.TierUsage]:
    """The disk and memory tiers."""
    disk, memory = counters.disk, counters.memory
    return [
        adapters_pb2.TierUsage(
            tier="disk",
            entries=now.disk.objects,
            bytes=now.disk.used_bytes,
            capacity_bytes=now.disk.capacity_bytes,
            hits=disk.hits,
            misses=disk.misses,
            loads=disk.loads,
            evictions=disk.evictions,
        ),
        adapters_pb2.TierUsage(
            tier="memory",
            entries=now.arena.packs,
            bytes=now.arena.used_bytes,
            capacity_bytes=now.arena.capacity_bytes,
            hits=memory.hits,
            misses=memory.misses,
            loads=memory.loads,
            evictions=now.arena.evictions,
            pinned_bytes=now.arena.pinned_bytes,
        ),
    ]
