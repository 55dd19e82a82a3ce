"""Attention over pages by itself: prompts against the arithmetic's bound, decoding against the memory's.

    PYTHONPATH=. python -m bench.attention --out attention.json

Each line is a launch in a CUDA graph, over as many caches in turn as make the keys cold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.replays import measure
from bench.versions import versions
from kernels.attention import paged
from kernels.attention.paged import Blocks
from kernels.attention.tiles import QueryTiles, cut

PAGE = 16
PEAK_TFLOPS, PEAK_TBS = 790.0, 3.06
PROMPTS = ((1, 1024, 0), (8, 1024, 0), (1, 1500, 0), (1, 8192, 0), (1, 512, 7680))
"""Rows, tokens of each, tokens before them."""
DECODES = ((1, 256), (1, 8192), (8, 256), (8, 2048), (32, 256), (32, 2048), (128, 256), (128, 2048))
"""Rows, tokens that each sees."""
PROMPT_BLOCKS = (Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 3), Blocks(128, 64, 8, 2), Blocks(128, 128, 8, 2))
DECODE_BLOCKS = (
    Blocks(16, 64, 4, 3),
    Blocks(16, 64, 4, 4),
    Blocks(16, 64, 4, 2),
    Blocks(16, 64, 2, 3),
    Blocks(16, 32, 2, 4),
    Blocks(16, 32, 1, 4),
    Blocks(16, 128, 4, 2),
)

Heads = dict[str, int]
"""heads, kv_heads, head_dim."""
Line = dict[str, Any]


class Case:
    """A batch of equal rows over caches of their own."""

    def __init__(self, rows: int, tokens: int, start: int, *, heads: int, kv_heads: int, head_dim: int):
        self.rows, self.tokens, self.start = rows, tokens, start
        self.heads, self.head_dim = heads, head_dim
        columns = -(-(start + tokens) // PAGE)
        shape = (rows * columns + 1, PAGE, 2, kv_heads, head_dim)
        bytes_of_one = 2 * int(np.prod(shape))
        copies = min(64, max(1, (200 << 20) // bytes_of_one))
        self.bytes = 2 * rows * (start + tokens) * 2 * kv_heads * head_dim
        self.caches = [torch.randn(shape, device="cuda").bfloat16() for _ in range(copies)]
        self.table = torch.randperm(rows * columns, device="cuda").view(rows, columns).int()
        self.q = torch.randn(rows * tokens, heads, head_dim, device="cuda").bfloat16()
        self.out = torch.empty(rows * tokens, heads * head_dim, device="cuda", dtype=torch.bfloat16)

    @property
    def flops(self) -> float:
        seen = self.rows * self.tokens * (self.start + (self.tokens + 1) / 2)
        return 4 * self.heads * self.head_dim * seen

    def tiles(self, queries: int) -> QueryTiles:
        places = cut(
            np.arange(self.rows),
            np.arange(self.rows) * self.tokens,
            np.full(self.rows, self.start),
            np.full(self.rows, self.tokens),
            queries,
        )
        places = places[:, ::-1].copy()
        return QueryTiles(places=torch.from_numpy(places).cuda(), queries=queries)

    def launch(self, tiles: QueryTiles, **options: Any) -> Callable[[int], None]:
        """Attention over one of `caches`, for `measure`."""

        def run(copy: int) -> None:
            kv, scale = self.caches[copy], self.head_dim**-0.5
            paged.attend(self.out, self.q, kv, self.table, tiles, scale=scale, **options)

        return run


def few_splits(rows: int, kv_heads: int) -> int:
    """So many that 256 programs run, and no more than 32."""
    return 1 << max(0, min(256 // (rows * kv_heads), 32).bit_length() - 1)


def prompts(heads: Heads, *, tune: bool) -> Iterator[Line]:
    group = heads["heads"] // heads["kv_heads"]
    queries = paged.queries_per_tile(group, heads["head_dim"], torch.bfloat16)
    chosen = Blocks.choose(group, heads["head_dim"], queries, torch.bfloat16)
    for rows, tokens, start in PROMPTS:
        case = Case(rows, tokens, start, **heads)
        for blocks in (chosen, *(other for other in PROMPT_BLOCKS if tune and other != chosen)):
            run = case.launch(case.tiles(blocks.m // group), blocks=blocks)
            try:
                spent = measure(run, len(case.caches))
            except Exception as error:  # too much shared memory, say
                print(blocks, repr(error)[:120])
                continue
            speed = case.flops / spent / 1e6
            yield {
                "prompt": f"{rows} x {tokens} after {start}",
                "blocks": list(blocks),
                "us": round(spent, 1),
                "tflops": round(speed),
                "share": round(speed / PEAK_TFLOPS, 3),
            }


def decodes(heads: Heads, *, tune: bool) -> Iterator[Line]:
    chosen = Blocks.choose(heads["heads"] // heads["kv_heads"], heads["head_dim"], 1, torch.bfloat16)
    for rows, context in DECODES:
        case = Case(rows, 1, context - 1, **heads)
        usual = few_splits(rows, heads["kv_heads"])
        trials = [(usual, chosen)]
        if tune:
            trials += [(splits, chosen) for splits in (1, 4, 8, 16) if splits != usual]
            trials += [(usual, blocks) for blocks in DECODE_BLOCKS if blocks != chosen]
        for splits, blocks in trials:
            run = case.launch(case.tiles(1), splits=splits, blocks=blocks)
            spent = measure(run, len(case.caches))
            rate = case.bytes / spent / 1e6
            yield {
                "decode": f"{rows} x {context}",
                "splits": splits,
                "blocks": list(blocks),
                "us": round(spent, 1),
                "tb_s": round(rate, 2),
                "share": round(rate / PEAK_TBS, 3),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, nargs=3, default=(32, 8, 128), help="query, KV, dimension")
    parser.add_argument("--tune", action="store_true", help="also blocks that were not chosen")
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    heads: Heads = dict(zip(("heads", "kv_heads", "head_dim"), options.heads, strict=True))
    lines: list[Line] = []
    for line in chain(prompts(heads, tune=options.tune), decodes(heads, tune=options.tune)):
        lines.append(line)
        print(line, flush=True)
    if options.out:
        options.out.write_text(json.dumps(versions() | {"heads": options.heads, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
