"""Microseconds that adapters of one rank add to the projections of Qwen3-8B, beside what peers' kernels take.

    PYTHONPATH=.:protos python -m bench.lora_kernels --out lora.json

n tokens over u adapters, within a CUDA graph in which each call reads other weights, so that they come from
memory and not from L2. `added` is the product with its adapters less the product by itself, as they are
computed in serving: up to 1,024 tokens in the tiles that graphs have, gate_up with its SiLU in both. The
product by itself may end with SiLU, which it cannot with adapters beyond 32 tokens, and peers' never does:
`plain` is what is added to a product and a step for SiLU. `alone` is a shrink and an expand by themselves,
where adapters have launches of their own (gate and up's are expanded by their SiLU's step, though). Of peers,
that of each row which takes least is shown (`bench/results/peers_lora_kernels_h100.json`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import beside_checks, replays
from bench.gpu_checks import check_lora
from executor.graphs.shapes import MOST_TOKENS as MOST_RECORDED
from executor.graphs.shapes import StepShape, block_of
from kernels import lora
from kernels.fused import gpu as steps
from kernels.fused import reference as fused
from kernels.lora import (
    Arrivals,
    LoraBatch,
    PackedSlice,
    SliceEntry,
    SliceShape,
    SlotTable,
    reference,
)
from kernels.lora.beside_tiles import MOST_TOKENS
from kernels.lora.tiles import Tiles, cut

PROJECTIONS = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (12_288, 12_288)),
    "down": (12_288, (4096,)),
}
PEERS = Path(__file__).parent / "results" / "peers_lora_kernels_h100.json"
_COLD_BYTES = 200 << 20
MOST_ERROR = 1e-2
"""Relative to float32; adapters are as large a share of the result as the base."""


class Case:
    """Tokens, adapters and weights of one projection: enough copies that none is found in L2."""

    def __init__(self, projection: str, rank: int, tokens: int, adapters: int, *, copies: int = 0) -> None:
        inputs, sizes = PROJECTIONS[projection]
        moved = 2 * inputs * sum(sizes) + sum(2 * rank * (inputs + size) for size in sizes) * adapters
        self.copies = copies or max(2, math.ceil(_COLD_BYTES / moved))
        self.is_gated = projection == "gate_up"
        self._sizes, self._starts = sizes, np.cumsum((0, *sizes)).tolist()
        self._table = make_table(inputs, sizes, rank=rank, adapters=adapters, copies=self.copies)
        self._weights = torch.randn(self.copies, sum(sizes), inputs, device="cuda", dtype=torch.bfloat16)
        self._x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16) * inputs**-0.5
        batch = LoraBatch.of_tokens(np.sort(np.arange(tokens) % adapters).tolist())
        # Without gains and shifts, as a step knows: with them, gate and up would be expanded by themselves.
        self._segments, self._batch = batch, replace(batch.tiled(self._table), has_vectors=False)
        if tokens <= MOST_RECORDED:
            block = block_of(StepShape(tokens=tokens, rows=1, decodes=0, chunks=1, lora=None), rank)
            places, _ = cut(batch.slots, batch.splits, blocks=(block,))
            tiles = Tiles(places=torch.from_numpy(places).cuda(), block=block, rank=rank)
            self._batch = LoraBatch(slots=(), splits=(0,), tiles=tiles, has_vectors=False)
        if tokens <= MOST_TOKENS:
            arrivals = Arrivals(max(self.copies, replays.LEAST_CALLS), torch.device("cuda"))
            self._batch = replace(self._batch, arrivals=arrivals)

    def begin(self) -> None:
        """Before as many calls as there are copies, and at least `replays.LEAST_CALLS`."""
        if self._batch.arrivals is not None:
            self._batch.arrivals.begin()

    def base(self, copy: int) -> Tensor:
        if self.is_gated:
            return steps.linear_silu_mul(self._x, self._weights[copy], None)
        return steps.linear_to_add(self._x, self._weights[copy], None)

    def plain(self, copy: int) -> Tensor:
        """Gate and up as peers have them: SiLU in a step of its own."""
        return steps.silu_mul(steps.linear(self._x, self._weights[copy], None))

    def ahead(self, copy: int) -> Tensor:
        return lora.ahead(self._x, None, slices=self._slices(copy), batch=self._batch, table=self._table)

    def both(self, copy: int) -> Tensor:
        """As in serving: the product with its adapters, or float32 parts of it."""
        slices, weight = self._slices(copy), self._weights[copy]
        if self._batch.arrivals is not None:
            y = lora.product(
                self._x,
                weight,
                None,
                slices=slices,
                batch=self._batch,
                table=self._table,
                gated=self.is_gated,
            )
        elif self.is_gated and lora.can_be_gated(self._batch, self._table):
            y = steps.linear(self._x, weight, None)
            shrunk = lora.shrink(self._x, slices=slices, batch=self._batch, table=self._table)
            return lora.silu_mul(y, shrunk, slices=slices, batch=self._batch, table=self._table)
        else:
            y = self.ahead(copy).addmm_(self._x, weight.t())
        is_left = self.is_gated and y.shape[-1] == len(weight)
        return steps.silu_mul(y, self._x.dtype) if is_left else y

    def expected(self) -> Tensor:
        """The first copy's product with its adapters, float32."""
        y = self._x.float() @ self._weights[0].float().t()
        reference.apply(y, self._x, slices=self._slices(0), batch=self._segments, table=self._table)
        return y

    def error(self) -> float:
        """Of the first copy, relative to float32."""
        expected = fused.silu_mul(self.expected()) if self.is_gated else self.expected()
        self.begin()
        found = fused.whole(self.both(0), torch.float32).float()
        return ((found - expected).norm() / expected.norm()).item()

    def _slices(self, copy: int) -> list[PackedSlice]:
        first = copy * len(self._sizes)
        return [PackedSlice(first + i, self._starts[i], self._starts[i + 1]) for i in range(len(self._sizes))]


def measure(projection: str, rank: int, tokens: int, adapters: int) -> dict[str, float]:
    """Microseconds."""
    case = Case(projection, rank, tokens, adapters)
    if not (error := case.error()) < MOST_ERROR:
        raise SystemExit(f"{projection}, rank {rank}, {tokens} tokens: error {error}, nothing is timed")
    runs = [case.base, case.both, *([case.plain] if case.is_gated and tokens > MOST_TOKENS else [])]
    base, both, *plain = replays.measure_in_turns(runs, case.copies, before=case.begin)
    found = {"base_us": base, "with_base_us": both, "added_us": both - base}
    if plain:
        found["added_to_plain_us"] = both - plain[0]
    if tokens > MOST_TOKENS:
        found["alone_us"] = replays.measure(case.ahead, case.copies)
    return {name: round(value, 2) for name, value in found.items()}


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
                SliceEntry(slice=index, a_unit=unit, b_unit=unit + a_units, rank=rank, scaling=rank**0.5)
            )
            unit += a_units + b_units
        table.set_row(slot, entries)
    return table


def show(rows: list[dict[str, Any]]) -> None:
    """Every case, then geometric means over the projections."""
    print(
        "projection rank    n  u |  bound | ours: added  plain   alone | peers: added (who)     alone (who)"
    )
    ratios: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for row in rows:
        peer = row["peer"]
        plain, alone = (
            f"{row[name]:.1f}" if name in row else "-" for name in ("added_to_plain_us", "alone_us")
        )
        print(
            f"{row['projection']:<9} {row['rank']:>5} {row['tokens']:>4} {row['adapters']:>2} |"
            f" {peer['bound_us']:6.1f} | {row['added_us']:11.1f} {plain:>6} {alone:>7} |"
            f" {peer.get('least_added_us', math.nan):12.1f} {peer.get('least_added', '-'):<8}"
            f" {peer['best_us']:8.1f} {peer['best']}"
        )
        theirs = peer.get("least_added_us")
        mine = row["added_us"] if theirs is not None else row.get("alone_us", row["added_us"])
        ratios[row["rank"], row["tokens"], row["adapters"]].append(
            max(mine, 0.1) / (theirs if theirs is not None else peer["best_us"])
        )
    print("ours / the best peer's, geometric mean over projections (what little is added counts as 0.1 us):")
    for (rank, tokens, adapters), found in ratios.items():
        print(f"  rank {rank:>2} n {tokens:>4} u {adapters:>2}: {math.exp(np.mean(np.log(found))):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--most-tokens", type=int, default=8192)
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    for check in (check_lora(torch.bfloat16, tokens) for tokens in (1, 40, 300, 2048)):
        if not check.good:
            raise SystemExit(f"{check.name}: error {check.error}, nothing is timed")
    if not all(error < 1e-2 for _, _, error in beside_checks.run_all()):
        raise SystemExit("adapters beside a product are wrong, nothing is timed")
    rows = []
    for peer in json.loads(PEERS.read_text())["rows"]:
        case = peer["projection"], peer["rank"], peer["tokens"], peer["adapters"]
        if peer["rank"] in options.ranks and peer["tokens"] <= options.most_tokens:
            names = ("projection", "rank", "tokens", "adapters")
            rows.append(dict(zip(names, case, strict=True)) | measure(*case) | {"peer": peer})
    show(rows)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
