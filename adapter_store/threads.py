"""The threads of one store, and the processes that help them: which there are, how many, and for what."""

from pathlib import Path

from adapter_store.concurrency.crew import Crew
from adapter_store.concurrency.outside_reads import OutsideReads
from adapter_store.concurrency.workers import Workers
from adapter_store.config import StoreConfig
from adapter_store.packs.scan_processes import ScanProcesses
from rpc.tuning import usable_cores

# More threads than this wait for the interpreter and for memory.
_MAX_CREW = 16
# A single one gains nothing by them.
_CORES_FOR_PROCESSES = 2
# Remote sources read at once; twice what unknown names may take of them.
_FETCHERS = 32


class Threads:
    """Each kind apart, so that what blocks one holds up none of the others.

    Args:
        arena: the arena's file, which processes read.
    """

    def __init__(self, config: StoreConfig, arena: Path) -> None:
        cores = min(_MAX_CREW, usable_cores())
        # A lease never waits behind loads.
        self.loads = Workers(config.threads, "store-load", is_nice=True)
        self.packs = Workers(config.threads, "store-pack", is_nice=True)
        self.reads = OutsideReads(config.threads, idle_seconds=config.source_idle_seconds)
        self.fetchers = Workers(_FETCHERS, "store-fetch", is_nice=True)
        self.writer = Workers(1, "store-writer")
        self.spooler = Workers(1, "store-upload")
        self.crew = Crew(cores - 1)
        self.scanners = ScanProcesses(arena, cores) if cores >= _CORES_FOR_PROCESSES else None

    @property
    def running(self) -> int:
        """Loads' and leases' calls that run or wait."""
        return sum(kind.running for kind in (self.loads, self.packs, self.fetchers, self.reads))

    def close(self) -> None:
        """Waits for what runs. `reads` are closed before, since loads wait for them."""
        for workers in (self.spooler, self.fetchers, self.loads, self.packs, self.writer):
            workers.close()
        self.crew.close()
        if self.scanners is not None:
            self.scanners.close()
