"""Microseconds of a layer's experts in the shape of Qwen3-30B-A3B, base and LoRA, cold in L2, within a CUDA
graph.

    PYTHONPATH=.:protos python -m bench.moe_kernels --peers peers.json

n tokens over u adapters of one rank, experts of a uniform router. Three tables: the base's products beside
what their bytes need at 3.06 TB/s and beside `torch._grouped_mm`; LoRA by itself (shrink and expand of both
products, as the peers were measured) beside the recorded peers; what LoRA adds to the base as it is served.
With `--search`, other tiles are tried and the best printed, for `kernels/moe/tiles.py`.

Every case and candidate is first compared with float32 in a process of its own, which also compiles its
kernels: what is wrong is never timed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.moe_checks import (
    EXPERTS,
    HIDDEN,
    TOP_K,
    WIDE,
    Job,
    Layers,
    check_kernels,
    lora_of,
    make_table,
    random,
    route,
    slots_of,
)
from bench.replays import measure
from kernels import moe, moe_lora
from kernels.lora import SlotTable
from kernels.moe import Routing, gpu, gpu_products, gpu_routing, gpu_vectors
from kernels.moe.tiles import Tile
from kernels.moe_lora import gpu as lora_gpu

TOKENS = (1, 2, 8, 32, 128, 1024)
CASES = tuple(
    (n, u) for n, u in ((1, 1), (8, 1), (8, 4), (32, 1), (32, 4), (128, 1), (128, 4), (1024, 1), (1024, 4))
)
_COPIES, _LAYERS = 16, 4
_BYTES_PER_MICROSECOND = 3.06e6


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRow:
    """Microseconds; the floor is of the weights that are touched."""

    tokens: int
    floor: float
    whole: float
    route: float
    arrange: float
    gate_up: float
    down: float
    add_up: float
    grouped_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRow:
    """Microseconds: LoRA alone (and of that, gate and up), what it adds to the base as it is served, and the
    best of the peers alone.
    """

    rank: int
    tokens: int
    adapters: int
    peer: str = ""
    theirs: float = math.nan
    floor: float = math.nan
    alone: float = math.nan
    gate_up: float = math.nan
    added: float = math.nan


def base_row(layers: Layers, tokens: int) -> BaseRow:
    x, logits = layers.inputs(tokens)
    routings = [route(each) for each in logits]
    touched = sum(len(routing.experts_TX.unique()) for routing in routings) / len(routings)
    tiles, _ = gpu.arrange_for(routings[0], EXPERTS)
    made = [gpu.arrange_for(routing, EXPERTS)[1] for routing in routings]
    wide, y = pairs_of(tokens, WIDE), pairs_of(tokens, HIDDEN)

    def gate_up(i: int) -> None:
        weight = layers.of(i).gate_up_E2ID
        gpu_products.gate_up(x, weight, routings[i], made[i], tiles.gate_up, activated=True)

    def down(i: int) -> None:
        gpu_products.down(wide, layers.of(i).down_EDI, routings[i], made[i], tiles.down)

    def timed(run: Callable[[int], Any]) -> float:
        return round(measure(run, _COPIES), 2)

    return BaseRow(
        tokens=tokens,
        floor=round(touched * 3 * HIDDEN * WIDE * 2 / _BYTES_PER_MICROSECOND, 1),
        whole=timed(lambda i: moe.add_up(gpu.experts(x, route(logits[i]), layers.of(i), adapt=None))),
        route=timed(lambda i: route(logits[i])),
        arrange=timed(lambda i: gpu_routing.arrange(routings[i], EXPERTS, block=tiles.down.pairs)),
        gate_up=timed(gate_up),
        down=timed(down),
        add_up=timed(lambda i: gpu_products.add_up(y, routings[i])),
        grouped_mm=_grouped_mm(layers, routings, wide),
    )


def pairs_of(tokens: int, features: int) -> Tensor:
    return random(tokens * TOP_K, features, std=1.0, make=torch.Generator(device="cuda"))


def _grouped_mm(layers: Layers, routings: list[Routing], wide: Tensor) -> float:
    """Both products of sorted pairs, by torch."""
    pairs = len(wide)
    x = pairs_of(pairs // TOP_K, HIDDEN)
    ends = [
        torch.bincount(routing.experts_TX.flatten(), minlength=EXPERTS).cumsum(0).int()
        for routing in routings
    ]

    multiply = torch._grouped_mm  # pyright: ignore[reportPrivateImportUsage]

    def run(i: int) -> None:
        weights = layers.of(i)
        multiply(x, weights.gate_up_E2ID.transpose(1, 2), offs=ends[i])
        multiply(wide, weights.down_EDI.transpose(1, 2), offs=ends[i])

    try:
        return round(measure(run, _COPIES), 2)
    except Exception as error:
        print(f"torch._grouped_mm, {pairs} pairs: {str(error)[:100]}")
        return math.nan


def lora_row(layers: Layers, table: SlotTable, row: LoraRow) -> LoraRow:
    """A row with its figures. Which experts few tokens choose matters: the base is timed with the same."""
    x, logits = layers.inputs(row.tokens)
    slots = slots_of(row.tokens, row.adapters)
    loras, routings = (
        [lora_of(slots, table, copy) for copy in range(_COPIES)],
        [route(each) for each in logits],
    )
    runs = [lora.runs(routing) for lora, routing in zip(loras, routings, strict=True)]
    pairs, wide = row.tokens * TOP_K, pairs_of(row.tokens, WIDE)
    y_gate_up, y_down = wide.new_zeros(pairs, 2 * WIDE), wide.new_zeros(pairs, HIDDEN)

    def gate_up(i: int) -> None:
        first = loras[i].first_slice
        lora_gpu.apply_gate_up(y_gate_up, x, runs[i], first_slice=first, table=table, ready=True)

    def down(i: int) -> None:
        first = loras[i].first_slice
        lora_gpu.apply_down(y_down, wide, runs[i], first_slice=first, table=table, ready=True)

    def both(i: int) -> None:
        gate_up(i)
        down(i)

    def base(i: int) -> None:
        moe.add_up(gpu.experts(x, route(logits[i]), layers.of(i), adapt=None))

    def whole(i: int) -> None:
        moe.add_up(moe_lora.experts(x, route(logits[i]), layers.of(i), lora=loras[i], triton=True))

    slots_T = torch.tensor(slots, device="cuda")
    met = [len((slots_T[:, None] * EXPERTS + routing.experts_TX).unique()) for routing in routings]
    numbers = sum(met) / len(met) * row.rank * 3 * (HIDDEN + WIDE)
    numbers += row.tokens * HIDDEN + pairs * (WIDE + 2 * (2 * WIDE + HIDDEN))
    return replace(
        row,
        floor=round(2 * numbers / _BYTES_PER_MICROSECOND, 2),
        alone=round(measure(both, _COPIES), 2),
        gate_up=round(measure(gate_up, _COPIES), 2),
        added=round(measure(whole, _COPIES) - measure(base, _COPIES), 2),
    )


def candidates(tokens: int) -> list[Tile]:
    """Tiles worth trying for either product."""
    shapes = {
        16: ((64, 128, 4, 3), (64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 3), (32, 256, 4, 3),
             (128, 128, 8, 3), (128, 64, 4, 4), (16, 256, 4, 4), (64, 64, 4, 6)),
        32: ((64, 128, 4, 3), (64, 128, 4, 4), (64, 256, 4, 3), (128, 128, 8, 3), (128, 64, 4, 4)),
        64: ((128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 8, 3), (128, 128, 8, 3), (64, 128, 4, 3),
             (64, 64, 4, 4), (256, 64, 8, 3)),
        128: ((128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 4, 3), (256, 64, 8, 3)),
    }  # fmt: skip
    sizes = {2: (16,), 8: (16,), 32: (16,), 128: (16, 32), 1024: (64, 128)}.get(tokens, ())
    return [Tile(size, *shape) for size in sizes for shape in shapes[size]]


def search(layers: Layers, tokens: int, good: set[Tile]) -> None:
    """Print the best tiles of either product."""
    x, logits = layers.inputs(tokens)
    wide = pairs_of(tokens, WIDE)
    routings = [route(each) for each in logits]
    found: dict[str, list[tuple[float, Tile]]] = {"gate_up": [], "down": []}
    for tile in candidates(tokens):
        if tile not in good:
            continue
        made = [gpu_routing.arrange(routing, EXPERTS, block=tile.pairs) for routing in routings]
        for name in found:

            def run(i: int, name: str = name, tile: Tile = tile, made: list[Any] = made) -> None:
                weights = layers.of(i)
                if name == "gate_up":
                    gpu_products.gate_up(x, weights.gate_up_E2ID, routings[i], made[i], tile, activated=True)
                else:
                    gpu_products.down(wide, weights.down_EDI, routings[i], made[i], tile)

            found[name].append((round(measure(run, _COPIES), 1), tile))
    for name, rows in found.items():
        print(f"{tokens:>5} {name:<8}" + " | ".join(f"{us} {tuple(tile)}" for us, tile in sorted(rows)[:5]))


def search_vectors(layers: Layers, tokens: int) -> None:
    """Print how fast other cuts of the kernels for very few tokens are."""
    x, logits = layers.inputs(tokens)
    routings, wide = [route(each) for each in logits], pairs_of(tokens, WIDE)

    def gate_up(i: int) -> None:
        gpu_vectors.gate_up(x, layers.of(i).gate_up_E2ID, routings[i])

    def down(i: int) -> None:
        gpu_vectors.down(wide, layers.of(i).down_EDI, routings[i])

    for run, cut, tried in (
        (gate_up, gpu_vectors.GATE_UP, ((8, 1024, 4), (4, 1024, 4), (8, 512, 4), (16, 512, 4), (8, 2048, 8))),
        (down, gpu_vectors.DOWN, ((4, 256, 4), (2, 256, 4), (8, 256, 8), (2, 256, 2), (4, 128, 4))),
    ):
        served, found = dict(cut), []
        for shape in tried:
            cut |= dict(zip(cut, shape, strict=True))
            found.append((round(measure(run, _COPIES), 2), shape))
        cut |= served
        print(
            f"{tokens:>5} {run.__name__:<8} as vectors " + " | ".join(f"{us} {s}" for us, s in sorted(found))
        )


def peers(path: Path | None) -> dict[tuple[int, int, int], tuple[float, str]]:
    """The best recorded time of each case (rank, tokens, adapters), and whose it is.

    The file is a list of rows: kind ("moe"), r, n, u, us, impl.
    """
    if path is None:
        return {}
    best: dict[tuple[int, int, int], tuple[float, str]] = {}
    for row in json.loads(path.read_text()):
        if row["kind"] == "moe":
            key = (row["r"], row["n"], row["u"])
            best[key] = min(best.get(key, (math.inf, "")), (row["us"], row["impl"]))
    return best


def show(rows: list[LoraRow]) -> None:
    print("rank    n  u   floor    alone (gate_up)  added   alone / best peer")
    for row in rows:
        print(
            f"{row.rank:>4} {row.tokens:>4} {row.adapters:>2} {row.floor:>7.1f} {row.alone:>8.1f} "
            f"({row.gate_up:>6.1f}) {row.added:>7.1f}   {row.alone / row.theirs:5.2f}  {row.theirs:6.1f} "
            f"{row.peer}"
        )
    for name, some in (
        ("decode", [row for row in rows if row.tokens < 1024]),
        ("prefill", [row for row in rows if row.tokens >= 1024]),
    ):
        if some:
            means = [
                math.exp(sum(math.log(max(ours, 0.1) / row.theirs) for row, ours in each) / len(some))
                for each in (
                    [(row, row.alone) for row in some],
                    [(row, row.added) for row in some],
                )
            ]
            print(f"geometric mean over the best peer, {name}: alone {means[0]:.3f}, added {means[1]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--peers", type=Path, help="recorded rows of other systems")
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    cases = [(rank, n, u) for rank in options.ranks for n, u in CASES if n in options.tokens]
    tiles = {tile for n in options.tokens for tile in candidates(n)} if options.search else set()
    jobs: list[Job] = [("case", (0, n, 1)) for n in options.tokens]
    jobs += [("case", case) for case in cases] + [("tile", (tile,)) for tile in sorted(tiles)]
    good = set()
    for job, check in check_kernels(jobs):
        if check.good:
            good.add(job)
        else:
            print(f"WRONG {check}", flush=True)
    print(f"{len(good)} of {len(jobs)} are right", flush=True)
    layers, base = Layers(_LAYERS, _COPIES), []
    for tokens in options.tokens:
        if ("case", (0, tokens, 1)) in good:
            base.append(base_row(layers, tokens))
            print(*(f"{name} {value}" for name, value in asdict(base[-1]).items()), flush=True)
        if options.search and tokens <= gpu_vectors.MOST_TOKENS:
            search_vectors(layers, tokens)
        if options.search:
            search(layers, tokens, {tile for tile in tiles if ("tile", (tile,)) in good})
    rows, best = [], peers(options.peers)
    for rank in options.ranks:
        table = make_table(rank, 4, _COPIES)
        for case in cases:
            if case[0] == rank and ("case", case) in good:
                theirs, peer = best.get(case, (math.nan, ""))
                row = LoraRow(rank=rank, tokens=case[1], adapters=case[2], peer=peer, theirs=theirs)
                rows.append(lora_row(layers, table, row))
        del table
    show(rows)
    if options.out:
        report = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
        report |= {"base": [asdict(row) for row in base], "lora": [asdict(row) for row in rows]}
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
