"""Finds how products and their adapters are best cut on this GPU, for `kernels/lora/beside_tiles.py`.

    PYTHONPATH=.:protos python -m bench.tune_lora

Prints a line of the table for each product of Qwen3-8B. A candidate whose numbers are wrong is never timed,
one that does not compile is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from unittest.mock import patch

import torch

from bench.lora_kernels import PROJECTIONS, Case
from bench.replays import measure
from kernels import lora
from kernels.linear.tiles import Tile
from kernels.lora.beside_tiles import Beside

# Tokens, adapters and rank that stand for each size of the table.
_CASES = {"_H100": ((1, 1, 16), (8, 8, 16), (32, 32, 16)), "_H100_WIDE": ((32, 32, 64),)}
_LIMIT = 1e-2


def candidates(tokens: int) -> Iterator[Beside]:
    """Cuts worth trying."""
    if tokens == 1:
        for rows, block_k, warps in ((4, 1024, 4), (2, 1024, 4), (2, 2048, 4), (2, 2048, 8), (8, 1024, 8)):
            for span in (128, 256):
                yield Beside(Tile(rows, 1, block_k, warps, 1, 1), 1, span)
        return
    wide = 16 if tokens <= 16 else 32
    for rows, stages, splits in ((64, 4, 1), (64, 4, 2), (64, 4, 4), (64, 3, 2), (64, 3, 4), (64, 6, 1)):
        for chunks, span in ((4, 512), (8, 128), (4, 256), (4, 1024)):
            yield Beside(Tile(rows, wide, 128, 4, stages, splits, 512), chunks, span)


def tune(projection: str, tokens: int, adapters: int, rank: int) -> tuple[float, Beside]:
    """Microseconds of the best, and that. Raises RuntimeError where none is right."""
    case, found = Case(projection, rank, tokens, adapters), []
    expected = case.expected()
    for cut in dict.fromkeys(candidates(tokens)):
        with patch.object(lora, "choose", lambda *_args, cut=cut, **_named: cut):
            try:
                parts = case.both(0)
                error = ((parts.sum(0) - expected).norm() / expected.norm()).item()
                if error < _LIMIT:
                    found.append((measure(case.both, case.copies), cut))
                else:
                    print(f"# wrong: {projection} {tokens} {cut}, error {error:.1e}")
            except RuntimeError as problem:  # too much shared memory, say
                print(f"# fails: {projection} {tokens} {cut}: {str(problem)[:80]}")
    if not found:
        raise RuntimeError(f"no candidate computes {projection} of {tokens} tokens")
    return min(found)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(f"# {torch.cuda.get_device_name()}")
    for table, cases in _CASES.items():
        print(f"{table} = {{")
        for tokens, adapters, rank in cases:
            for projection, (inputs, sizes) in PROJECTIONS.items():
                microseconds, (tile, chunks, span) = tune(projection, tokens, adapters, rank)
                key = tokens, sum(sizes), inputs
                print(f"    {key}: Beside(Tile{tuple(tile)}, {chunks}, {span}),  # {microseconds:.1f} us")
        print("}", flush=True)


if __name__ == "__main__":
    main()
