"""What attention adds to a layer of a decoding step, between the products before and after it: norms,
rotation, KV and attention in one launch, or in two or three.

    PYTHONPATH=. python -m bench.attention_chain --out attention_chain.json

Each line is a CUDA graph of such layers, over as many caches and weights in turn as make both cold; the same
graph without attention is subtracted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench import decode_checks
from bench.attention import PAGE, PEAK_TBS, Case, few_splits
from bench.replays import measure
from bench.versions import versions
from kernels.attention import QueryTiles, decode, paged
from kernels.fused import gpu

ROWS, TOKENS = (1, 8, 16, 32), (256, 2048)
LAYERS, COLD = 36, 5
HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 32, 8, 128, 4096
EPS = 1e-6


class Layer:
    """A batch of equal rows, and what a layer does with it."""

    def __init__(self, rows: int, tokens: int) -> None:
        self.case = case = Case(rows, 1, tokens - 1, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
        self.tiles, self.rows = case.tiles(1), rows
        self.splits = few_splits(rows, KV_HEADS)
        row, token, position = (part.long() for part in self.tiles.places[:3])
        self.positions = torch.empty(rows, dtype=torch.int32, device="cuda")
        self.kv_tokens = torch.empty(rows, dtype=torch.int32, device="cuda")
        self.positions[token] = position.int()
        self.kv_tokens[token] = case.table[row, position // PAGE] * PAGE + (position % PAGE).int()
        width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        self.x = torch.randn(rows, HIDDEN, device="cuda").bfloat16()
        self.qkv = [_weight(width, HIDDEN) for _ in range(COLD)]
        self.o = [_weight(HIDDEN, HEADS * HEAD_DIM) for _ in range(COLD)]
        cos, sin, norms = torch.randn(3, tokens, HEAD_DIM, device="cuda").bfloat16()
        self.rotary, self.norms = (cos, sin), (norms[0], norms[1])
        self.arrived = torch.zeros(rows * KV_HEADS, dtype=torch.int32, device="cuda")

    def chain(self, attend: Callable[[Tensor, Tensor], Tensor]) -> None:
        for index in range(LAYERS):
            qkv = gpu.linear(self.x, self.qkv[index % COLD], None)
            out = attend(qkv, self.case.caches[index % len(self.case.caches)])
            gpu.linear_to_add(out, self.o[index % COLD], None)

    def time(self, attend: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Microseconds a layer."""
        return measure(lambda _: self.chain(attend), 1) / LAYERS

    def nothing(self, qkv: Tensor, kv: Tensor) -> Tensor:
        return self.case.out

    def apart(self, qkv: Tensor, kv: Tensor) -> Tensor:
        q = gpu.rotate_store(
            qkv, kv.flatten(0, 1), self.kv_tokens, self.rotary, self.positions, self.norms, EPS
        )
        out = torch.empty_like(self.case.out)
        paged.attend(out, q, kv, self.case.table, self.tiles, scale=HEAD_DIM**-0.5, splits=self.splits)
        return out

    def together(self, qkv: Tensor, kv: Tensor) -> Tensor:
        out = torch.empty_like(self.case.out)
        decode.attend(
            out,
            qkv,
            kv,
            self.case.table,
            QueryTiles(places=self.tiles.places, queries=1),
            self.kv_tokens,
            self.rotary,
            self.norms,
            EPS,
            scale=HEAD_DIM**-0.5,
            arrived=self.arrived,
            splits=self.splits,
        )
        return out


def _weight(outputs: int, inputs: int) -> Tensor:
    return (torch.randn(outputs, inputs, device="cuda") * inputs**-0.5).bfloat16()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    if not all(error < 1e-2 for _, _, error in decode_checks.run_all()):
        raise SystemExit("numbers are wrong: run bench.gpu_checks")
    lines = []
    for rows in options.rows:
        for tokens in options.tokens:
            layer = Layer(rows, tokens)
            base, apart, together = (
                layer.time(attend) for attend in (layer.nothing, layer.apart, layer.together)
            )
            lines.append(
                {
                    "decode": f"{rows} x {tokens}",
                    "products_us": round(base, 2),
                    "apart_us": round(apart - base, 2),
                    "together_us": round(together - base, 2),
                    "bytes_us": round(layer.case.bytes / PEAK_TBS / 1e6, 2),
                }
            )
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text(json.dumps(versions() | {"lines": lines}, indent=1))


if __name__ == "__main__":
    main()
