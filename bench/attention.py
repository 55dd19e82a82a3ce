"""Attention over pages by itself: prompts against the arithmetic's bound, decoding against the memory's.

    PYTHONPATH=. python -m bench.attention --out attention.json

Each line is a launch in a CUDA graph, over as many caches in turn as make the keys cold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

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

    def launch(self, tiles: QueryTiles, **options: Any) -> Callable[[], None]:
        def run() -> None:
            for kv in self.caches:
                paged.attend(self.out, self.q, kv, self.table, tiles, scale=self.head_dim**-0.5, **options)

        return run


def microseconds(run: Callable[[], None], calls: int) -> float:
    """The median time of one of `calls` calls that `run` makes."""
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    times = []
    for _ in range(9):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(np.median(times)) * 1e3 / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, nargs=3, default=(32, 8, 128), help="query, KV, dimension")
    parser.add_argument("--tune", action="store_true", help="also blocks that were not chosen")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    heads, kv_heads, head_dim = options.heads
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    group, lines = heads // kv_heads, []

    def add(line: dict[str, Any]) -> None:
        lines.append(line)
        print(line, flush=True)

    for rows, tokens, start in PROMPTS:
        case = Case(rows, tokens, start, **sizes)
        queries = paged.queries_per_tile(group, head_dim, torch.bfloat16)
        chosen = Blocks.choose(group, head_dim, queries, torch.bfloat16)
        for blocks in (chosen, *(other for other in PROMPT_BLOCKS if options.tune and other != chosen)):
            tiles = case.tiles(blocks.m // group)
            try:
                spent = microseconds(case.launch(tiles, blocks=blocks), len(case.caches))
            except Exception as error:
                print(blocks, repr(error)[:120])
                continue
            speed = case.flops / spent / 1e6
            name = f"{rows} x {tokens} after {start}"
            share = round(speed / PEAK_TFLOPS, 3)
            add(
                {
                    "prompt": name,
                    "blocks": list(blocks),
                    "us": round(spent, 1),
                    "tflops": round(speed),
                    "share": share,
                }
            )
    for rows, context in DECODES:
        case = Case(rows, 1, context - 1, **sizes)
        tiles = case.tiles(1)
        static = 1 << max(0, min(256 // (rows * kv_heads), 32).bit_length() - 1)
        chosen = Blocks.choose(group, head_dim, 1, torch.bfloat16)
        trials = [(static, chosen)]
        if options.tune:
            trials += [(splits, chosen) for splits in (1, 4, 8, 16) if splits != static]
            trials += [(static, blocks) for blocks in DECODE_BLOCKS if blocks != chosen]
        for splits, blocks in trials:
            spent = microseconds(case.launch(tiles, splits=splits, blocks=blocks), len(case.caches))
            rate = case.bytes / spent / 1e6
            add(
                {
                    "decode": f"{rows} x {context}",
                    "splits": splits,
                    "blocks": list(blocks),
                    "us": round(spent, 1),
                    "tb_s": round(rate, 2),
                    "share": round(rate / PEAK_TBS, 3),
                }
            )
    if options.out:
        options.out.write_text(json.dumps(versions() | {"heads": options.heads, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
