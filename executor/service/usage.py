"""What adapters were asked for, as messages."""

from executor.control.scheduler import Scheduler
from executor.control.usage import UsageTable
from lorikeet.v1 import executor_pb2 as pb

MAX_ADAPTERS = 1000


def busiest_adapters(usage: UsageTable, scheduler: Scheduler, count: int) -> list[pb.ExecutorAdapter]:
    """The adapters with the most requests, at most 1,000, and one entry "others" for the rest.

    From any thread: approximate while steps run.
    """
    entries: list[pb.ExecutorAdapter] = []
    for adapter in usage.busiest(min(count, MAX_ADAPTERS)):
        presence = scheduler.presence(adapter.digest)
        entries.append(
            pb.ExecutorAdapter(
                digest=adapter.digest,
                is_resident=presence.is_resident,
                waiting=presence.waiting,
                running=presence.running,
                requests=adapter.requests,
                pool_loads=adapter.pool_loads,
                pool_hits=adapter.pool_hits,
                slot_wait_seconds=adapter.slot_wait_seconds,
                load_wait_seconds=adapter.load_wait_seconds,
                queue_wait_seconds=adapter.queue_wait_seconds,
            )
        )
    return entries
