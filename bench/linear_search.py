"""Searches tiles for Qwen3-8B's products of few tokens, for `kernels/linear/tiles.py`.

    PYTHONPATH=.:protos python -m bench.linear_search --tokens 8 32 128

Products are timed within a chain of layers, launched as the engine launches them but for rotary and
attention: what is fastest by itself may leave the next kernel no room to begin. One product after the other
takes its best tile and keeps it. A candidate whose numbers are wrong is never timed.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from bench.replays import measure
from kernels.fused import gpu, reference
from kernels.linear.small_batch import multiply, parts
from kernels.linear.tiles import Tile, choose

SHAPES = {"gate_up": (24_576, 4096), "o": (4096, 4096), "down": (4096, 12_288), "qkv": (6144, 4096)}
_LAYERS = 6
_SHARED_BYTES = 227 << 10
_LEAST_GAIN = 0.3
"""Microseconds a layer; less is within what two measurements of one chain differ by."""

_Tiles = dict[str, Tile | None]
"""Of each product; None is cuBLAS, and SiLU after it."""


def candidates(name: str, tokens: int) -> Iterator[Tile]:
    """Tiles worth trying, which fit in shared memory and keep most of 132 processors busy."""
    if tokens == 1:
        for rows, block_k, warps in product((2, 4), (1024, 2048), (4, 8)):
            yield Tile(rows, 1, block_k, warps, 1, 1)
        return
    outputs, inputs = SHAPES[name]
    wide = next(size for size in (16, 32, 64, 128) if tokens <= size)
    for rows, block_k, stages, splits in product(
        (32, 48, 64, 128, 192), (64, 128, 256, 512), (3, 4, 5, 6), (1, 2, 4)
    ):
        bytes_of_stage = 2 * block_k * (rows + wide)
        programs = -(-outputs // rows) * splits
        if not bytes_of_stage * stages <= _SHARED_BYTES <= 1.6 * bytes_of_stage * stages:
            continue
        if (splits > 1 and (name not in ("o", "down") or rows.bit_count() > 1)) or not 90 <= programs <= 800:
            continue
        if inputs % (block_k * splits) == 0:
            warps = 8 if rows > 64 and wide > 16 else 4
            yield Tile(rows, wide, block_k, warps, stages, splits, 512 if wide < 64 else 256)


def compute(name: str, x_TK: Tensor, weight_NK: Tensor, tile: Tile | None) -> Tensor:
    """A product as the engine launches it in that tile: gate_up with its SiLU, o and down maybe in parts."""
    is_gated = name == "gate_up"
    if tile is None:
        y_TN = reference.linear(x_TK, weight_NK, None)
        return gpu.silu_mul(y_TN) if is_gated else y_TN
    if tile.splits > 1:
        return parts(x_TK, weight_NK, tile)
    out = x_TK.new_empty(len(x_TK), len(weight_NK) // (2 if is_gated else 1))
    multiply(out, x_TK, weight_NK, None, tile, gated=is_gated)
    return out


class Chain:
    """Layers of random weights, more of them than fit in L2, and some tokens that go through them."""

    def __init__(
        self, tokens: int, device: torch.device, shapes: dict[str, tuple[int, int]] = SHAPES
    ) -> None:
        def random(rows: int, columns: int, scale: float) -> Tensor:
            return torch.randn(rows, columns, device=device, dtype=torch.bfloat16) * scale

        self._weights = [
            {name: random(*shape, shape[1] ** -0.5) for name, shape in shapes.items()} for _ in range(_LAYERS)
        ]
        self._inputs = {name: random(tokens, columns, 1.0) for name, (_, columns) in shapes.items()}
        self._x_TD = random(tokens, shapes["o"][0], 1.0)
        self._norm_D = torch.ones(shapes["o"][0], device=device, dtype=torch.bfloat16)

    def run(self, tiles: _Tiles) -> None:
        delta: Tensor | None = None
        for weights in self._weights:
            h_TD = gpu.add_norm(self._x_TD, delta, self._norm_D, 1e-6)
            qkv_TP = compute("qkv", h_TD, weights["qkv"], tiles["qkv"])
            delta = compute("o", qkv_TP[:, : weights["o"].shape[1]], weights["o"], tiles["o"])
            h_TD = gpu.add_norm(self._x_TD, delta, self._norm_D, 1e-6)
            wide_TI = compute("gate_up", h_TD, weights["gate_up"], tiles["gate_up"])
            delta = compute("down", wide_TI, weights["down"], tiles["down"])

    def time(self, tiles: _Tiles) -> float:
        """Microseconds a layer, the better of two graphs."""
        return min(measure(lambda _: self.run(tiles), 1) for _ in range(2)) / _LAYERS

    def error(self, name: str, tile: Tile | None) -> float:
        """Relative, to float32."""
        x_TK, weight_NK = self._inputs[name], self._weights[0][name]
        expected = reference.linear(x_TK.float(), weight_NK.float(), None)
        if name == "gate_up":
            expected = reference.silu_mul(expected)
        found = reference.whole(compute(name, x_TK, weight_NK, tile), torch.float32).float()
        return ((found - expected).norm() / expected.norm()).item()


def search(tokens: int) -> None:
    chain = Chain(tokens, torch.device("cuda"))
    tiles: _Tiles = {name: choose(tokens, *shape, gated=name == "gate_up") for name, shape in SHAPES.items()}
    before = chain.time(tiles)
    print(f"{tokens} tokens: {before:.2f} us a layer", flush=True)
    for name in SHAPES:
        now, found = chain.time(tiles), list[tuple[float, Tile | None]]()
        for tile in {None, *candidates(name, tokens)} - {tiles[name]}:
            try:
                error = chain.error(name, tile)
                if error < 6e-3:
                    found.append((chain.time(tiles | {name: tile}) - now, tile))
                else:
                    print(f"wrong: {name} {tile} {error}")
            except Exception as failure:  # too much shared memory, say
                print(f"fails: {name} {tile} {str(failure)[:100]}")
        found.sort(key=lambda entry: entry[0])
        for gain, tile in found[:4]:
            print(f"    {name:<8} {gain:+6.2f} us  {tuple(tile) if tile else 'cuBLAS'}", flush=True)
        if found and found[0][0] < -_LEAST_GAIN:
            tiles[name] = found[0][1]
    print(f"{tokens} tokens: {chain.time(tiles):.2f} us a layer, before {before:.2f}")
    for name, tile in tiles.items():
        print(f"    ({tokens}, {', '.join(map(str, SHAPES[name]))}): {tile},")


def _compile(jobs: list[tuple[str, int, Tile]]) -> None:
    """Fill Triton's cache, in a process of its own; what fails will fail again where it is told."""
    for name, tokens, tile in jobs:
        weight_NK = torch.zeros(SHAPES[name], device="cuda", dtype=torch.bfloat16)
        x_TK = torch.zeros(tokens, SHAPES[name][1], device="cuda", dtype=torch.bfloat16)
        try:
            compute(name, x_TK, weight_NK, tile)
        except Exception:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128])
    parser.add_argument("--processes", type=int, default=12, help="that compile candidates before")
    options = parser.parse_args()
    jobs = [(name, n, tile) for n in options.tokens for name in SHAPES for tile in candidates(name, n)]
    print(f"{len(jobs)} candidates")
    forked = multiprocessing.get_context("fork")
    compilers = [
        forked.Process(target=_compile, args=(jobs[i :: options.processes],))
        for i in range(options.processes)
    ]
    for compiler in compilers:
        compiler.start()
    for compiler in compilers:
        compiler.join()
    for tokens in options.tokens:
        search(tokens)


if __name__ == "__main__":
    main()
