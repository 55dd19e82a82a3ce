"""Thousands of adapters over one base, through gRPC: are all answers right, and what does the crowd cost?

    python -m bench.many_adapters                         # 2,000 adapters, demo model, CPU
    python -m bench.many_adapters --device cuda

Store, executor and frontend are three processes. Adapters are random; what each must answer is computed first
by transformers with the adapter merged into the base. Requests draw adapters from Zipf(1.0); the executor's
pool has room for 64 of them and the store's memory for 500. The same traffic to one adapter is the yardstick,
in turns with theirs, and shares are of medians, since one run differs from the next by a tenth:

* with the model: every answer is checked;
* without the LoRA arithmetic (and without the model): the runner takes a fixed time for each step, as a GPU
  would, so that what is left of the difference is scheduling, loading and evicting.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import seeded_adapters
from bench.load_stalls import cpu_seconds
from bench.seeded_adapters import Place
from lorikeet.v1 import adapters_pb2, generation_pb2
from tests.support.service_stack import DEMO, Stack, stack_at

MODEL = DEMO / "qwen3-tiny"
# Tokens that the model has no firm opinion about, so that adapters differ.
PROMPT: tuple[int, ...] = tuple(np.random.default_rng(6).integers(40, 600, 32).tolist())
ALIGNMENT = 128


@dataclass(frozen=True, kw_only=True)
class Run:
    """One traffic: `wrong` answers of those checked, the share of requests that found their adapter, what a
    step brought, and CPU milliseconds a request by process.
    """

    name: str
    requests: int
    tokens_per_second: float
    first_token_p50_ms: float
    first_token_p99_ms: float
    pool_hit_rate: float
    memory_hit_rate: float
    loads: int
    tokens_per_step: float
    cpu_ms: dict[str, float]
    wrong: int
    checked: int


def zipf(count: int, adapters: int, seed: int) -> list[int]:
    """Which adapter each request asks for: the k-th most popular with a probability in proportion to 1/k."""
    shares = 1.0 / np.arange(1, adapters + 1)
    return np.random.default_rng(seed).choice(adapters, size=count, p=shares / shares.sum()).tolist()


def pack_bytes(at: Mapping[str, Place], rank: int, element_bytes: int) -> int:
    """Of one of our adapters in the executor's layout."""
    padded = -(-rank // 8) * 8
    total = 0
    for place in at.values():
        for features in (place.inputs, place.outputs):
            total += -(-padded * features * element_bytes // ALIGNMENT) * ALIGNMENT
    return total


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The adapters, where they lie, and what each must answer."""

    folder: Path
    places: dict[str, Place]
    expected: list[list[int]]

    @property
    def distinct(self) -> int:
        return len({tuple(answer) for answer in self.expected})


class Traffic:
    """Sends requests and checks answers; `expected` by adapter, empty where nothing can be checked."""

    def __init__(
        self, stack: Stack, *, tokens: int, concurrency: int, expected: Sequence[Sequence[int]]
    ) -> None:
        self._stack = stack
        self._tokens = tokens
        self._concurrency = concurrency
        self._expected = expected

    async def run(self, name: str, adapters: Sequence[int]) -> Run:
        before, engine, cpu = await self._counters(), await self._stack.statistics(), self._cpu()
        waiting = iter(adapters)
        first_tokens: list[float] = []
        wrong = 0

        async def client() -> None:
            nonlocal wrong
            for adapter in waiting:
                seconds, ids = await self._ask(adapter)
                first_tokens.append(seconds)
                if self._expected:
                    expected = self._expected[adapter]
                    wrong += tuple(ids[: len(expected)]) != tuple(expected)

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(self._concurrency)))
        seconds = time.perf_counter() - started
        after, cpu_after = await self._counters(), self._cpu()
        engine_after = await self._stack.statistics()
        return Run(
            name=name,
            requests=len(adapters),
            tokens_per_second=len(adapters) * self._tokens / seconds,
            first_token_p50_ms=1e3 * float(np.percentile(first_tokens, 50)),
            first_token_p99_ms=1e3 * float(np.percentile(first_tokens, 99)),
            pool_hit_rate=_rate(before, after, "pool"),
            memory_hit_rate=_rate(before, after, "memory"),
            loads=engine_after.pool_loads - engine.pool_loads,
            tokens_per_step=len(adapters) * self._tokens / (engine_after.steps - engine.steps),
            cpu_ms={name: 1e3 * (cpu_after[name] - cpu[name]) / len(adapters) for name in cpu},
            wrong=wrong,
            checked=len(adapters) if self._expected else 0,
        )

    async def _ask(self, adapter: int) -> tuple[float, list[int]]:
        request = generation_pb2.GenerateRequest(
            tokens=generation_pb2.TokenIds(ids=PROMPT),
            adapter=f"a{adapter}",
            sampling=generation_pb2.SamplingParams(temperature=0, max_tokens=self._tokens, ignore_eos=True),
        )
        started, first, ids = time.perf_counter(), 0.0, []
        async for response in self._stack.generation.Generate(request, timeout=300):
            first = first or time.perf_counter() - started
            ids += response.token_ids
        return first, ids

    async def _counters(self) -> dict[str, tuple[int, int]]:
        statistics = await self._stack.adapters.GetAdapterStatistics(
            adapters_pb2.GetAdapterStatisticsRequest(limit=1)
        )
        return {tier.tier: (tier.hits, tier.misses) for tier in statistics.tiers}

    def _cpu(self) -> dict[str, float]:
        stack = self._stack
        services = {"store": stack.store, "executor": stack.executor, "frontend": stack.frontend}
        return {name: cpu_seconds(service.pid) for name, service in services.items()}


def _rate(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], tier: str) -> float:
    hits, misses = (now - then for now, then in zip(after[tier], before[tier], strict=True))
    return hits / max(1, hits + misses)


async def load_all(stack: Stack, folder: Path, count: int) -> float:
    """Loads every adapter, sixteen at a time; returns the seconds."""
    numbers = iter(range(count))

    async def loader() -> None:
        for number in numbers:
            request = adapters_pb2.LoadAdapterRequest(name=f"a{number}", source=str(folder / str(number)))
            await stack.adapters.LoadAdapter(request, timeout=300)

    await stack.load("a0", folder / "0")
    started = time.perf_counter()
    await asyncio.gather(*(loader() for _ in range(16)))
    return time.perf_counter() - started


async def measure(options: argparse.Namespace, crowd: Crowd, *, arithmetic: bool) -> list[Run]:
    """Both traffics on one set of services."""
    element_bytes = 2 if options.dtype == "bfloat16" else 4
    pack = pack_bytes(crowd.places, options.rank, element_bytes)
    flags = [
        f"--device={options.device}",
        f"--dtype={options.dtype}",
        f"--max-running={options.rows}",
        f"--adapter-slots={options.slots}",
        f"--adapter-pool-bytes={options.slots * pack}",
        f"--pool-eviction={options.pool_eviction}",
    ]
    if arithmetic:
        flags += ["--runner=arithmetic", f"--arithmetic-step-seconds={options.step_seconds}"]
    expected = [] if arithmetic or options.dtype != "float32" else crowd.expected
    store_flags = [
        # A pack's header comes on top.
        f"--arena-bytes={options.memory * (pack + ALIGNMENT) + (1 << 20)}",
        f"--memory-eviction={options.memory_eviction}",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        async with stack_at(
            Path(scratch),
            model_dir=MODEL,
            roots=[crowd.folder],
            executor_flags=flags,
            store_flags=store_flags,
        ) as stack:
            seconds = await load_all(stack, crowd.folder, options.adapters)
            print(f"loaded {options.adapters} adapters of {pack >> 10} KiB in {seconds:.1f} s", flush=True)
            traffic = Traffic(stack, tokens=options.tokens, concurrency=options.clients, expected=expected)
            draws = zipf(options.requests + options.settle, options.adapters, seed=1)
            await traffic.run("settle", draws[: options.settle])
            kind = "no arithmetic" if arithmetic else "model"
            runs: list[Run] = []
            for crowd_draws in np.array_split(draws[options.settle :], options.turns):
                many = crowd_draws.tolist()
                runs.append(await traffic.run(f"{kind}, one adapter", [0] * len(many)))
                runs.append(await traffic.run(f"{kind}, {options.adapters} adapters", many))
            return runs


def prepare(options: argparse.Namespace, folder: Path) -> Crowd:
    """Works out the answers, or takes those of an earlier run, and writes the adapters."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "crowd.json"
    if not record.exists():

        def progress(done: int) -> None:
            if done % 250 == 0:
                print(f"{done} of {options.adapters} adapters have their answers", flush=True)

        at, expected = seeded_adapters.answers(
            MODEL,
            count=options.adapters,
            rank=options.rank,
            prompt_ids=PROMPT,
            max_tokens=options.tokens,
            progress=progress,
        )
        places = {name: asdict(place) for name, place in at.items()}
        record.write_text(json.dumps({"places": places, "expected": expected}))
    known = json.loads(record.read_text())
    at = {name: Place(**place) for name, place in known["places"].items()}
    if not (folder / "0").exists():
        seeded_adapters.write_all(folder, at, count=options.adapters, rank=options.rank)
    return Crowd(folder=folder, places=at, expected=known["expected"])


def report(runs: Sequence[Run]) -> None:
    print(f"{'traffic':<32}{'tok/s':>9}{'first token p50/p99 ms':>25}{'pool':>7}{'memory':>8}{'wrong':>14}")
    for run in runs:
        first = f"{run.first_token_p50_ms:.1f} / {run.first_token_p99_ms:.1f}"
        wrong = f"{run.wrong} of {run.checked}" if run.checked else "-"
        print(
            f"{run.name:<32}{run.tokens_per_second:>9,.0f}{first:>25}"
            f"{run.pool_hit_rate:>7.1%}{run.memory_hit_rate:>8.1%}{wrong:>14}"
        )
    print(f"{'':<32}{'loads':>9}{'tokens a step':>15}   CPU ms a request")
    for run in runs:
        cpu = ", ".join(f"{name} {ms:.2f}" for name, ms in run.cpu_ms.items())
        print(f"{run.name:<32}{run.loads:>9}{run.tokens_per_step:>15.1f}   {cpu}")
    for one, many in dict.fromkeys(
        (one.name, many.name) for one, many in zip(runs[::2], runs[1::2], strict=True)
    ):
        speeds = {name: [run.tokens_per_second for run in runs if run.name == name] for name in (one, many)}
        share = statistics.median(speeds[many]) / statistics.median(speeds[one])
        print(f"{many}: {share:.1%} of one adapter's throughput, medians of {len(speeds[many])}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=2000)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--slots", type=int, default=64, help="adapters that the executor's pool holds")
    parser.add_argument("--memory", type=int, default=500, help="adapters that the store's memory holds")
    parser.add_argument("--requests", type=int, default=6000, help="of each traffic, in all turns together")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--settle",
        type=int,
        default=512,
        help="requests before the first turn; a GPU records its graphs then",
    )
    parser.add_argument("--rows", type=int, default=64, help="requests that run at once")
    parser.add_argument("--clients", type=int, default=128, help="requests that run or wait")
    parser.add_argument("--only", choices=("model", "no arithmetic"), help="one of the two kinds of run")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--step-seconds", type=float, default=0.006, help="of the runner without arithmetic")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--pool-eviction", default="gdsf")
    parser.add_argument("--memory-eviction", default="gdsf")
    parser.add_argument("--folder", type=Path, help="keep adapters and answers here, and use them again")
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        crowd = prepare(options, options.folder or Path(scratch) / "adapters")
        print(f"{crowd.distinct} of {len(crowd.expected)} answers are distinct")
        runs: list[Run] = []
        kinds = {"model": False, "no arithmetic": True}
        for arithmetic in [kinds[options.only]] if options.only else kinds.values():
            runs += asyncio.run(measure(options, crowd, arithmetic=arithmetic))
        report(runs)
    if options.out:
        record: dict[str, Any] = {
            "settings": {name: str(value) for name, value in vars(options).items()},
            "distinct_answers": crowd.distinct,
            "runs": [asdict(run) for run in runs],
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    if any(run.wrong for run in runs):
        raise SystemExit("some answers were wrong")


if __name__ == "__main__":
    main()
