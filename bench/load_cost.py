"""What one load of an adapter costs each service: CPU time by thread, and how often a thread went to sleep.

    python -m bench.load_cost                   # cold: loaded, brought into the pool, unloaded
    python -m bench.load_cost --streams 4       # the same beside streams, whose own cost is taken off
    python -m bench.load_cost --kind back       # asked for when it is in the disk tier alone

Store, executor and frontend are three processes, the client is this one; the demo model, a fixed number of
loads one after another. CPU time does not feel other jobs of the machine as a clock does, but they make it
dearer (caches, siblings of a core): compare only what was measured in turns.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.load_stalls import MODEL, Streams, make_adapters
from lorikeet.v1 import adapters_pb2, generation_pb2
from tests.support.service_stack import Stack, stack_at

_SERVICES = ("store", "executor", "frontend")
_WARM_UP = 20


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds, and sleeps, each of which a thread is woken from."""

    ms: float = 0.0
    sleeps: float = 0.0

    def plus(self, other: "Cost", factor: float = 1.0) -> "Cost":
        return Cost(self.ms + factor * other.ms, self.sleeps + factor * other.sleeps)


Costs = dict[tuple[str, str], Cost]
"""By service and kind of thread."""


def costs_of(stack: Stack) -> Costs:
    """Of all threads so far. What a thread cost that has ended is not in it."""
    costs: Costs = defaultdict(Cost)
    for name in _SERVICES:
        pid = getattr(stack, name).pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            ran = int((task / "schedstat").read_text().split()[0])
            status = (task / "status").read_text()
            slept = int(status.partition("\nvoluntary_ctxt_switches:\t")[2].split()[0])
            kind = "loop" if int(task.name) == pid else _kind(task)
            for key in ((name, kind), (name, "all")):
                costs[key] = costs[key].plus(Cost(ran / 1e6, slept))
    return costs


def _kind(task: Path) -> str:
    comm, _, rest = (task / "stat").read_text().rpartition(")")
    name = comm.partition("(")[2]
    # The interpreter's threads are named like their process.
    return f"nice {rest.split()[16]}" if name in ("python", "python3", "lorikeet") else name


class Client:
    """Loads of one kind, one after another."""

    def __init__(self, stack: Stack, sources: list[Path]) -> None:
        self._stack = stack
        self._sources = sources
        self._turn = 0

    async def cold(self) -> None:
        """A load from its source until the executor has it, and the end of an earlier one."""
        source = self._sources[self._turn % len(self._sources)]
        self._turn += 1
        adapters = self._stack.adapters
        await adapters.LoadAdapter(adapters_pb2.LoadAdapterRequest(name=source.name, source=str(source)))
        await adapters.PrefetchAdapter(adapters_pb2.PrefetchAdapterRequest(adapter=source.name))
        if self._turn > len(self._sources) // 2:
            earlier = self._sources[(self._turn - len(self._sources) // 2 - 1) % len(self._sources)]
            await adapters.UnloadAdapter(adapters_pb2.UnloadAdapterRequest(name=earlier.name))

    async def back(self) -> None:
        """A request whose adapter has left pool and memory since its last turn."""
        source = self._sources[self._turn % len(self._sources)]
        self._turn += 1
        await self._stack.answer(_one_token(source.name))

    async def resident(self) -> None:
        """A request whose adapter stays."""
        await self._stack.answer(_one_token(self._sources[0].name))


def _one_token(adapter: str) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(
        tokens=generation_pb2.TokenIds(ids=range(40, 48)),
        adapter=adapter,
        sampling=generation_pb2.SamplingParams(temperature=0, max_tokens=1, ignore_eos=True),
    )


async def cost_of(stack: Stack, count: int, once: Callable[[], Awaitable[None]]) -> tuple[Costs, float]:
    """Mean costs and seconds of `count` times, one after another."""
    for _ in range(_WARM_UP):
        await once()
    before, began = costs_of(stack), time.perf_counter()
    for _ in range(count):
        await once()
    seconds = (time.perf_counter() - began) / count
    after = costs_of(stack)
    return {
        key: Cost().plus(after[key].plus(before.get(key, Cost()), -1), 1 / count) for key in after
    }, seconds


async def measure(options: argparse.Namespace, folder: Path) -> tuple[Costs, float]:
    make_adapters(folder / "adapters", MODEL, [options.rank], options.adapters)
    (folder / "services").mkdir()
    sources = sorted((folder / "adapters" / f"rank-{options.rank}").iterdir())
    pack_bytes = sum(path.stat().st_size for path in sources[0].iterdir())
    back = options.kind == "back"
    # Room for a few packs of many, so that each turn finds its adapter gone.
    few = max(8 * pack_bytes, 1 << 20)
    flags = [f"--adapter-pool-bytes={few if back else 32 << 20}", "--max-lora-rank=256"]
    arena = f"--arena-bytes={few if back else 64 << 20}"
    async with stack_at(
        folder / "services", roots=[folder / "adapters"], executor_flags=flags, store_flags=[arena]
    ) as stack:
        client = Client(stack, sources)
        await stack.load("running", folder / "adapters" / "running")
        if back:
            for source in sources:
                await stack.load(source.name, source)
            costs, seconds = await cost_of(stack, options.loads, client.back)
            rest, _ = await cost_of(stack, options.loads, client.resident)
            return _less(costs, rest), seconds
        streams = Streams(stack, max(1, options.streams), tokens=1 << 14)
        tasks = [asyncio.create_task(streams.run(n)) for n in range(options.streams)]
        try:
            costs, seconds = await cost_of(stack, options.loads, client.cold)
            rest, _ = await cost_of(stack, options.loads, lambda: asyncio.sleep(seconds))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return _less(costs, rest), seconds


def _less(costs: Costs, rest: Costs) -> Costs:
    return {key: cost.plus(rest.get(key, Cost()), -1) for key, cost in costs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kind", choices=("cold", "back"), default="cold")
    parser.add_argument("--loads", type=int, default=200)
    parser.add_argument("--streams", type=int, default=0, help="beside cold loads")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=60)
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorikeet-load-cost-") as folder:
        costs, seconds = asyncio.run(measure(options, Path(folder)))
    print(f"{1e3 * seconds:.1f} ms a load by the clock")
    for (service, kind), cost in sorted(costs.items()):
        if cost.ms >= 0.05 or kind == "all":
            print(f"{service:9} {kind:16} {cost.ms:7.2f} ms {cost.sleeps:7.1f} sleeps")
    if options.out:
        rows = [{"service": s, "kind": k, **asdict(cost)} for (s, k), cost in sorted(costs.items())]
        options.out.write_text(json.dumps({"kind": options.kind, "seconds": seconds, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
