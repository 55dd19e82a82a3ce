"""Microseconds of Qwen3-8B's products of few tokens, ours beside cuBLAS, cold in L2, within a CUDA graph.

    PYTHONPATH=.:protos python -m bench.linears --out linears.json

What is split is not summed, since the norm that follows does that. With `--search`, other tiles are tried
too and the best printed, for `kernels/linear/tiles.py`. A candidate whose numbers are wrong is never timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernels.linear.small_batch import multiply, parts
from kernels.linear.tiles import Tile, choose

PRODUCTS = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (24_576, 4096),
    "down": (4096, 12_288),
    "lm_head": (151_936, 4096),
}
_COLD_BYTES = 400 << 20
_BYTES_PER_MICROSECOND = 3.06e6


def candidates(tokens: int) -> Iterator[Tile]:
    """Tiles worth trying."""
    if tokens == 1:
        for rows, block_k, warps in (
            (1, 2048, 4), (2, 1024, 4), (4, 512, 4), (4, 1024, 8), (8, 512, 4), (2, 2048, 4), (2, 2048, 8),
            (4, 2048, 8),
        ):  # fmt: skip
            yield Tile(rows, 1, block_k, warps, 1, 1)
        return
    least, prefetches = max(8, tokens), (0, 512)
    for rows, wide, block_k, warps, stages, splits in (
        (16, 16, 256, 4, 5, 1),
        (16, 32, 256, 4, 4, 1),
        (32, 16, 256, 4, 4, 1),
        (32, 32, 256, 4, 4, 1),
        (32, 16, 256, 4, 4, 2),
        (32, 32, 128, 4, 5, 2),
        (64, 8, 128, 4, 6, 4),
        (64, 16, 128, 4, 4, 4),
        (64, 16, 128, 4, 6, 2),
        (64, 16, 128, 4, 6, 1),
        (64, 32, 128, 4, 5, 1),
        (64, 32, 128, 4, 5, 2),
        (64, 32, 256, 4, 3, 2),
    ):
        if least <= wide <= 2 * least:
            for prefetch in prefetches:
                yield Tile(rows, wide, block_k, warps, stages, splits, prefetch)


def measure(run: Callable[[int], None], copies: int) -> float:
    """The median of replays, microseconds per call."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    calls = max(copies, 8)
    with torch.cuda.graph(graph):
        for call in range(calls):
            run(call % copies)
    times: list[float] = []
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(9):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return float(np.median(times[2:]))


def right(out_TN: Tensor, x_TK: Tensor, weight_NK: Tensor) -> bool:
    expected_TN = x_TK.float() @ weight_NK.float().t()
    return bool((out_TN.float() - expected_TN).norm() < 5e-3 * expected_TN.norm())


def _cublas(out_TN: Tensor, x_TK: Tensor, weights: Tensor, copy: int) -> None:
    torch.mm(x_TK, weights[copy].t(), out=out_TN)


def _ours(out_TN: Tensor, x_TK: Tensor, weights: Tensor, tile: Tile, copy: int) -> None:
    if tile.splits > 1 and tile.tokens > 1:
        parts(x_TK, weights[copy], tile)
    else:
        multiply(out_TN, x_TK, weights[copy], None, tile)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows, best = [], {}
    for name, (outputs, inputs) in PRODUCTS.items():
        copies = max(1, _COLD_BYTES // (2 * outputs * inputs))
        weights = torch.randn(copies, outputs, inputs, device="cuda", dtype=torch.bfloat16) * inputs**-0.5
        for tokens in options.tokens:
            x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
            out = torch.empty(tokens, outputs, device="cuda", dtype=torch.bfloat16)
            floor = (2 * outputs * inputs) / _BYTES_PER_MICROSECOND
            theirs = measure(partial(_cublas, out, x, weights), copies)
            tiles = {choose(tokens, outputs, inputs), *(candidates(tokens) if options.search else ())}
            found: list[tuple[float, Tile]] = []
            for tile in tiles:
                try:
                    multiply(out.fill_(float("nan")), x, weights[0], None, tile)
                    if right(out, x, weights[0]):
                        found.append((measure(partial(_ours, out, x, weights, tile), copies), tile))
                    else:
                        print(f"wrong: {name} {tokens} {tile}")
                except Exception as error:  # too much shared memory, say
                    print(f"fails: {name} {tokens} {tile} {str(error)[:100]}")
            found.sort()
            chosen = next((us for us, tile in found if tile == choose(tokens, outputs, inputs)), float("nan"))
            rows.append((name, tokens, floor, theirs, chosen, *(found[0] if found else (0, None))))
            if found:
                best[tokens, outputs, inputs] = found[0][1]
            print(
                f"{tokens:>3} {name:<8} floor {floor:6.1f}  cublas {theirs:6.1f}  ours {chosen:6.1f}  best"
                + "".join(f" | {us:.1f} {tuple(tile)}" for us, tile in found[:3]),
                flush=True,
            )
        del weights
    for tokens in options.tokens:
        mine = [row for row in rows if row[1] == tokens]
        sums = [sum(row[i] * (1 if row[0] == "lm_head" else 36) for row in mine) / 1e3 for i in (2, 3, 4, 5)]
        print(f"{tokens:>3} tokens, all layers, ms: floor {sums[0]:.2f} cublas {sums[1]:.2f} "
              f"ours {sums[2]:.2f} best {sums[3]:.2f}")  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
