"""Microseconds of Qwen3-8B's products of few tokens, ours beside cuBLAS, cold in L2, within a CUDA graph.

    PYTHONPATH=.:protos python -m bench.linears --out linears.json

What is split is not summed, since the norm that follows does that; of gate_up the SiLU is part, for cuBLAS a
launch of its own. A product whose numbers are wrong is not timed. `bench.linear_search` looks for tiles.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.replays import measure
from kernels.fused import gpu, reference
from kernels.linear.tiles import choose

PRODUCTS = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (24_576, 4096),
    "down": (4096, 12_288),
    "lm_head": (151_936, 4096),
}
_COLD_BYTES = 400 << 20
_BYTES_PER_MICROSECOND = 3.06e6


def right(found: Tensor, x_TK: Tensor, weight_NK: Tensor, *, gated: bool) -> bool:
    expected = x_TK.float() @ weight_NK.float().t()
    expected = reference.silu_mul(expected) if gated else expected
    return bool((reference.whole(found, torch.float32).float() - expected).norm() < 6e-3 * expected.norm())


def _cublas(x_TK: Tensor, weight_NK: Tensor, *, gated: bool) -> Tensor:
    y_TN = torch.mm(x_TK, weight_NK.t())
    return gpu.silu_mul(y_TN) if gated else y_TN


def _ours(x_TK: Tensor, weight_NK: Tensor, *, gated: bool) -> Tensor:
    return (gpu.linear_silu_mul if gated else gpu.linear_to_add)(x_TK, weight_NK, None)


def _time(compute: Callable[..., Tensor], x_TK: Tensor, weights_XNK: Tensor, *, gated: bool) -> float:
    if not right(compute(x_TK, weights_XNK[0], gated=gated), x_TK, weights_XNK[0], gated=gated):
        raise SystemExit(f"wrong: {compute.__name__} of {len(x_TK)} tokens, {weights_XNK[0].shape}")
    return measure(lambda copy: compute(x_TK, weights_XNK[copy], gated=gated), len(weights_XNK))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128])
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    rows: list[tuple[str, int, float, float, float]] = []
    for name, (outputs, inputs) in PRODUCTS.items():
        copies, gated = max(1, _COLD_BYTES // (2 * outputs * inputs)), name == "gate_up"
        weights = torch.randn(copies, outputs, inputs, device="cuda", dtype=torch.bfloat16) * inputs**-0.5
        for tokens in options.tokens:
            x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
            floor = (2 * outputs * inputs) / _BYTES_PER_MICROSECOND
            theirs, ours = (_time(compute, x, weights, gated=gated) for compute in (_cublas, _ours))
            rows.append((name, tokens, floor, theirs, ours))
            tile = choose(tokens, outputs, inputs, gated=gated)
            print(
                f"{tokens:>3} {name:<8} floor {floor:6.1f}  cublas {theirs:6.1f}  ours {ours:6.1f}  "
                f"{tuple(tile) if tile else 'cublas'}",
                flush=True,
            )
        del weights
    for tokens in options.tokens:
        mine = [(36 if name != "lm_head" else 1, times) for name, size, *times in rows if size == tokens]
        floor, theirs, ours = (sum(layers * times[i] for layers, times in mine) / 1e3 for i in range(3))
        print(f"{tokens:>3} tokens, all layers, ms: floor {floor:.2f} cublas {theirs:.2f} ours {ours:.2f}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
