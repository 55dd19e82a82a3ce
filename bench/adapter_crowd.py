"""A thousand adapters behind one GPU, through gRPC: what does the crowd cost beside one adapter?

    python -m bench.adapter_crowd                                   # Qwen3-8B shape, an H100
    python -m bench.adapter_crowd --device cpu --model-shape tiny --adapters 100 --slots 10

Attention-only adapters of rank 16; the executor's pool has room for `--slots` of them and the store's memory
for `--memory`; the disk has all. The load of `lorikeet bench serve`, Zipf(1.0), beside the same load on one
adapter. Weights and prompts are random; the adapters are the same numbers with different scalings, stored
apart like any others. Sources are links to one file, so that the disk holds each adapter once. With
`--soak-seconds` random traffic runs while they are loaded, and for so long again after what is timed.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from bench.engine import SHAPES
from bench.grpc_decode import Client as RandomClient
from bench.grpc_decode import write_adapters, write_model
from bench.soak import for_seconds, soak
from cli.benchmark import report
from cli.benchmark.load import send
from cli.benchmark.workload import Traffic, plan, random_prompts
from cli.client import Client, Connection
from tests.support import service_stack
from tests.support.service_stack import Stack, stack_at

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LOADS_AT_ONCE = 8


async def load_all(stack: Stack, folder: Path, count: int, names: list[str]) -> float:
    """Seconds until all are loaded; each is added to `names` once it is."""
    waiting = iter(range(count))

    async def worker() -> None:
        for index in waiting:
            await stack.load(f"a{index:04}", folder / str(index))
            names.append(f"a{index:04}")

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(LOADS_AT_ONCE)))
    return time.perf_counter() - begun


async def measure_load(
    client: Client, names: list[str], options: argparse.Namespace, seed: int, requests: int
) -> dict[str, Any]:
    """Throughput and times of one load; every request must be answered in full. Prompts differ by seed."""
    traffic = Traffic(
        requests=requests,
        rate=None,
        output_tokens=options.output,
        zipf=1.0,
        ignore_eos=True,
        temperature=0.0,
        seed=seed,
    )
    prompts = random_prompts(options.prompt, SHAPES[options.model_shape]["vocab_size"], seed)
    outcomes = await send(
        client, plan(traffic, prompts, names), concurrency=options.concurrency, on_end=lambda: None
    )
    summary = report.summarise(outcomes, {})
    if summary["completed"] != requests or summary["output_tokens"] != requests * options.output:
        raise SystemExit(f"not all was answered: {summary['failed']}")
    return summary


@asynccontextmanager
async def serving(options: argparse.Namespace, folder: Path) -> AsyncIterator[Stack]:
    """The three services over a made-up model and its adapters, whose folders lie below folder/adapters."""
    shape = SHAPES[options.model_shape]
    model_dir = write_model(folder / "model", shape)
    write_adapters(
        folder / "adapters", shape, count=options.adapters, rank=options.rank, projections=ATTENTION
    )
    size = pack_bytes(options, folder)
    arena = options.arena_dir / f"lorikeet-crowd-{os.getpid()}" if options.arena_dir else folder / "arena"
    services = folder / "services"
    services.mkdir()
    async with stack_at(
        services,
        model_dir=model_dir,
        roots=[folder / "adapters"],
        executor_flags=[
            f"--device={options.device}",
            f"--dtype={'bfloat16' if options.device == 'cuda' else 'float32'}",
            "--load-format=dummy",
            f"--max-running={options.concurrency}",
            f"--max-step-tokens={options.step_tokens}",
            f"--adapter-slots={options.slots}",
            f"--adapter-pool-bytes={options.slots * size}",
            f"--max-lora-rank={-(-options.rank // 8) * 8}",
            f"--arena-dir={arena}",
        ],
        store_flags=[f"--arena-bytes={options.memory * size + (64 << 20)}", f"--arena-dir={arena}"],
    ) as stack:
        yield stack


def pack_bytes(options: argparse.Namespace, folder: Path) -> int:
    """Of an adapter in the executor's layout, about."""
    element_bytes = 2 if options.device == "cuda" else 4
    size = (folder / "adapters/0/adapter_model.safetensors").stat().st_size * element_bytes // 2
    return size * 21 // 20  # padding


async def compare(stack: Stack, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Both loads, each after a warm-up of its own."""
    client = Client(Connection(target=stack.frontend.address, timeout=300))
    rows: dict[str, Any] = {}
    loads = (("one adapter", names[:1]), ("all adapters", names))
    for seed, (_, asked) in enumerate(loads):
        warm_up = await measure_load(client, asked, options, seed, options.warm_up)
        print(f"warmed up in {warm_up['seconds']:.1f} s", flush=True)
    for seed, (load, asked) in enumerate(loads, start=len(loads)):
        before = await stack.statistics()
        rows[load] = await measure_load(client, asked, options, seed, options.requests)
        after = await stack.statistics()
        rows[load]["pool_loads"] = after.pool_loads - before.pool_loads
        print(load, rows[load], flush=True)
    await client.close()
    return rows


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    begun = time.perf_counter()
    async with serving(options, folder) as stack:
        started = time.perf_counter() - begun
        print(f"serving after {started:.1f} s", flush=True)
        names: list[str] = []
        traffic = partial(
            soak,
            stack,
            RandomClient(stack, options).one,
            workers=options.concurrency * 3 // 2,
            longest_prompt=1500,
            names=names,
        )
        loading = asyncio.create_task(load_all(stack, folder / "adapters", options.adapters, names))
        soaks = [await traffic(until=loading.done)] if options.soak_seconds else []
        seconds = await loading
        size = pack_bytes(options, folder)
        print(f"{options.adapters} adapters of {size >> 20} MiB loaded in {seconds:.0f} s", flush=True)
        names.sort()
        rows = await compare(stack, names, options)
        if options.soak_seconds:
            soaks.append(await traffic(until=for_seconds(options.soak_seconds)))
    one, crowd = rows["one adapter"], rows["all adapters"]
    return {
        "options": {name: str(value) for name, value in vars(options).items() if name != "out"},
        "start_seconds": round(started, 1),
        "loads_per_second": round(options.adapters / seconds, 1),
        "share_of_one_adapters_throughput": round(
            crowd["output_tokens_per_second"] / one["output_tokens_per_second"], 3
        ),
        "times_one_adapters_decode_time": round(crowd["tpot_ms"]["p50"] / one["tpot_ms"]["p50"], 3),
        "rows": rows,
        "soaks": soaks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-shape", choices=SHAPES, default="qwen3-8b")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=100, help="adapters on the GPU at once")
    parser.add_argument("--memory", type=int, default=300, help="adapters in the store's memory at once")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--warm-up", type=int, default=256, help="requests of each kind, before")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument(
        "--soak-seconds", type=float, default=0.0, help="random traffic while loading, and after"
    )
    parser.add_argument("--step-tokens", type=int, default=8192)
    parser.add_argument("--arena-dir", type=Path, help="a folder in memory; else beside the rest")
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    service_stack.START_SECONDS = 240.0
    with tempfile.TemporaryDirectory() as folder:
        result = uvloop.run(measure(options, Path(folder)))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"share of one adapter's throughput: {result['share_of_one_adapters_throughput']:.1%}")
    print(f"median time of a token: {result['times_one_adapters_decode_time']:.2f} times one adapter's")


if __name__ == "__main__":
    main()
