"""Microseconds of a shrink and an expand on the projections of Qwen3-8B, within a CUDA graph.

    PYTHONPATH=.:protos python -m bench.lora_kernels --out lora.json

n tokens over u adapters of one rank. Each of the graph's calls reads other weights, so that they come from
memory and not from L2; the floor, in brackets, is the bytes of weights, x, and y (read and written), at 3.0
TB/s.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.gpu_checks import check_lora
from kernels import lora
from kernels.lora import LoraBatch, PackedSlice, SliceEntry, SliceShape, SlotTable

PROJECTIONS = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (12_288, 12_288)),
    "down": (12_288, (4096,)),
}
CASES = ((1, 1), (8, 1), (8, 8), (32, 4), (32, 32), (128, 4), (128, 64), (512, 4), (2048, 4), (8192, 4))
_COLD_BYTES = 128 << 20
_MOST_COPIES = 128
_BYTES_PER_MICROSECOND = 3.0e6


def measure(projection: str, rank: int, tokens: int, adapters: int) -> tuple[float, float]:
    """Microseconds, and the floor."""
    in_features, sizes = PROJECTIONS[projection]
    numbers = sum(rank * (in_features + size) for size in sizes)
    copies = max(1, min(_MOST_COPIES, math.ceil(_COLD_BYTES / (2 * numbers * adapters))))
    table = make_table(in_features, sizes, rank=rank, adapters=adapters, copies=copies)
    slots = np.sort(np.arange(tokens) % adapters)
    batch = LoraBatch.of_tokens(slots.tolist()).tiled(table)
    x = torch.randn(tokens, in_features, device="cuda", dtype=torch.bfloat16) * in_features**-0.5
    y = torch.zeros(tokens, sum(sizes), device="cuda", dtype=torch.bfloat16)
    starts = np.cumsum((0, *sizes)).tolist()

    def run(copy: int) -> None:
        first = copy * len(sizes)
        slices = [PackedSlice(first + i, starts[i], starts[i + 1]) for i in range(len(sizes))]
        lora.apply(y, x, slices=slices, batch=batch, table=table)

    microseconds = time_graph(run, copies)
    moved = 2 * (numbers * adapters + x.numel() + 2 * y.numel())
    return microseconds, moved / _BYTES_PER_MICROSECOND


def make_table(
    in_features: int, sizes: tuple[int, ...], *, rank: int, adapters: int, copies: int
) -> SlotTable:
    """Every copy of every slice of every adapter has weights of its own."""
    shapes = [
        SliceShape(kind="linear", in_features=in_features, out_features=size) for size in sizes
    ] * copies
    units = [
        [rank * features * 2 // 128 for features in (in_features, shape.out_features)] for shape in shapes
    ]
    pool = torch.empty(adapters * sum(map(sum, units)) * 64, device="cuda", dtype=torch.bfloat16)
    pool.normal_(std=rank**-0.5)
    table, unit = SlotTable(pool=pool, shapes=shapes, slots=adapters), 0
    for slot in range(adapters):
        entries = []
        for index, (a_units, b_units) in enumerate(units):
            entries.append(
                SliceEntry(slice=index, a_unit=unit, b_unit=unit + a_units, rank=rank, scaling=0.01)
            )
            unit += a_units + b_units
        table.set_row(slot, entries)
    return table


def time_graph(run: Callable[[int], None], copies: int) -> float:
    """The median of replays, per call."""
    run(0)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(copies):
            run(copy)
    times: list[float] = []
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(12):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / copies)
    return float(np.median(times[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    for check in (check_lora(torch.bfloat16, tokens) for tokens in (1, 40, 300)):
        if not check.good:
            raise SystemExit(f"{check.name}: error {check.error}, nothing is timed")
    rows = []
    for rank in options.ranks:
        for tokens, adapters in CASES:
            line = f"rank {rank:>3}  n {tokens:>4}  u {adapters:>2}  "
            for projection in PROJECTIONS:
                microseconds, floor = measure(projection, rank, tokens, adapters)
                rows.append((projection, rank, tokens, adapters, round(microseconds, 2), round(floor, 2)))
                line += f"  {projection} {microseconds:7.1f} ({floor:6.1f})"
            print(line, flush=True)
    if options.out:
        names = ("projection", "rank", "tokens", "adapters", "microseconds", "floor")
        options.out.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))


if __name__ == "__main__":
    main()
