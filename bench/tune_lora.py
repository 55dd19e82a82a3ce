"""Finds how products and their adapters are best cut on this GPU, for `kernels/lora/beside_tiles.py`.

    PYTHONPATH=.:protos python -m bench.tune_lora

Prints a line of the table for each product of Qwen3-8B. A candidate whose numbers are wrong is never timed,
one that does not compile is left out. A minute on an H100's host, most of it compiling.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from itertools import product
from unittest.mock import patch

import torch

from bench.lora_kernels import MOST_ERROR, PROJECTIONS, Case
from bench.replays import measure
from kernels import lora
from kernels.linear.tiles import Tile
from kernels.lora.beside_tiles import Beside

# Tokens, adapters and rank that stand for each size of the table.
_CASES = {"_H100": ((1, 1, 16), (8, 8, 16), (32, 32, 16)), "_H100_WIDE": ((32, 32, 64),)}
_SHARED_BYTES = 113 << 10
"""Of a program, so that two fit a processor: adapters' programs leave no room for one otherwise."""


def candidates(tokens: int, projection: str) -> Iterator[Beside]:
    """Cuts worth trying."""
    if tokens == 1:
        for rows, block_k, warps in ((4, 1024, 4), (2, 1024, 4), (2, 2048, 4), (2, 2048, 8), (8, 1024, 8)):
            for span in (128, 256):
                yield Beside(Tile(rows, 1, block_k, warps, 1, 1), 1, span)
        return
    wide, most_splits = (16 if tokens <= 16 else 32), 1 if projection == "gate_up" else 4
    for rows, block_k, stages, splits in product((32, 64), (128, 256), (3, 4, 5, 6), (1, 2, 4)):
        if 2 * block_k * (rows + wide) * stages > _SHARED_BYTES or splits > most_splits:
            continue
        for chunks, span in ((4, 512), (8, 128), (4, 1024)):
            yield Beside(Tile(rows, wide, block_k, 4, stages, splits, 512), chunks, span)


def tune(projection: str, tokens: int, adapters: int, rank: int) -> tuple[float, Beside]:
    """Microseconds of the best, and that. Raises RuntimeError where none is right."""
    case, found = Case(projection, rank, tokens, adapters), list[tuple[float, Beside]]()
    for cut in candidates(tokens, projection):
        with patch.object(lora, "choose", lambda *_args, cut=cut, **_named: cut):
            try:
                if (error := case.error()) < MOST_ERROR:
                    found.append((measure(case.both, case.copies, before=case.begin), cut))
                else:
                    print(f"# wrong: {projection} {tokens} {cut}, error {error:.1e}")
            except RuntimeError as problem:  # too much shared memory, say
                print(f"# fails: {projection} {tokens} {cut}: {str(problem)[:80]}")
    if not found:
        raise RuntimeError(f"no candidate computes {projection} of {tokens} tokens")
    return min(found)


def compile_all(share: int, shares: int) -> None:
    """Fill Triton's cache, in a process of its own; what fails will fail again where it is told."""
    jobs = [
        (projection, tokens, adapters, rank, cut)
        for tokens, adapters, rank in _CASES["_H100"]
        for projection in PROJECTIONS
        for cut in candidates(tokens, projection)
    ]
    for projection, tokens, adapters, rank, cut in jobs[share::shares]:
        case = Case(projection, rank, tokens, adapters, copies=1)
        with patch.object(lora, "choose", lambda *_args, cut=cut, **_named: cut):
            try:
                case.begin()
                case.both(0)
            except RuntimeError:
                continue


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=12, help="that compile candidates before")
    options = parser.parse_args()
    forked = multiprocessing.get_context("fork")
    compilers = [
        forked.Process(target=compile_all, args=(share, options.processes))
        for share in range(options.processes)
    ]
    for compiler in compilers:
        compiler.start()
    for compiler in compilers:
        compiler.join()
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
