"""How many adapters a second come into a store when several are loaded at once.

    python -m bench.bulk_loads --folder /dev/shm --at-once 4 8

Attention-only adapters of Qwen3-8B's shape, the same numbers with different scalings; their sources are links
to one file. A store process alone, cold loads through its catalog, nothing leased; its memory tier has room
for `--memory` of them, so that packs are evicted as in a long run.
"""

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from bench import adapter_loads
from bench.adapter_loads import Store, layout_of, slices_of, write_adapter
from lorikeet.v1 import adapters_pb2

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def write_adapters(folder: Path, count: int, layers: int) -> tuple[int, dict[str, tuple[int, int]]]:
    """Adapters `folder/0`, ...; returns the bytes of one, and the base's slices."""
    slices = {
        module: pair
        for module, pair in slices_of("qwen3-8b").items()
        if int(module.split(".")[2]) < layers and module.rpartition(".")[2] in TARGETS
    }
    size = write_adapter(folder / "0", "qwen3-8b", slices)
    config = json.loads((folder / "0/adapter_config.json").read_text()) | {"target_modules": TARGETS}
    for index in range(count):
        place = folder / str(index)
        place.mkdir(exist_ok=True)
        if index:
            os.link(folder / "0/adapter_model.safetensors", place / "adapter_model.safetensors")
        scaled = config | {"lora_alpha": adapter_loads.RANK + index}
        (place / "adapter_config.json").write_text(json.dumps(scaled))
    return size, slices


async def measure(store: Store, names: list[str], at_once: int) -> str:
    waiting = iter(names)

    async def worker() -> None:
        for name in waiting:
            request = adapters_pb2.LoadAdapterRequest(name=name, source=name)
            await store.catalog.Load(request, timeout=300)

    process = psutil.Process(store.process.pid)
    cpu = sum(process.cpu_times()[:2])
    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    seconds = time.perf_counter() - begun
    spent = 1e3 * (sum(process.cpu_times()[:2]) - cpu) / len(names)
    rate = len(names) / seconds
    return f"{at_once:3} at once: {rate:6.1f} a second, {spent:6.1f} ms of the store's CPU a load"


async def run(options: argparse.Namespace, folder: Path) -> None:
    rounds = len(options.at_once)
    size, slices = write_adapters(folder / "sources", options.count * rounds + 1, options.layers)
    store = Store(folder, arena_bytes=options.memory * size * 21 // 20 + (64 << 20))
    await store.start(layout_of(slices))
    try:
        await measure(store, [str(options.count * rounds)], 1)  # starts threads and imports
        print(f"{options.count} adapters of {size / (1 << 20):.1f} MiB each time, {os.cpu_count()} cores")
        for number, at_once in enumerate(options.at_once):
            names = [str(options.count * number + index) for index in range(options.count)]
            print(await measure(store, names, at_once), flush=True)
    finally:
        await store.stop()
        shutil.rmtree(store.arena_folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=60, help="adapters of each measurement")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--memory", type=int, default=30, help="adapters in the store's memory at once")
    parser.add_argument("--folder", type=Path, help="on the file system to measure")
    options = parser.parse_args()
    adapter_loads.RANK = options.rank
    folder = Path(tempfile.mkdtemp(prefix="lorikeet-bench-", dir=options.folder))
    try:
        asyncio.run(run(options, folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
