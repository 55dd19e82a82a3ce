"""Paged attention against its definition: any mix of chunks and decodes, windows, and dirty pages."""

import numpy as np
import pytest
import torch
from torch import Tensor

from executor.model import attention as attention_module
from executor.model.attention import PagedAttention, Spans
from executor.model.config import ModelConfig
from executor.model.kv_cache import KvCache, page_bytes
from executor.model.page_table import PageTable

HEADS, KV_HEADS, HEAD_DIM, PAGE = 6, 2, 8, 4
CONFIG = ModelConfig.parse(
    {
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 64,
    },
    {},
)
CPU = torch.device("cpu")

# (tokens already stored, tokens fed) of each row
MIXES = {
    "decodes": [(0, 1), (7, 1), (30, 1), (3, 1)],
    "one decode": [(13, 1)],
    "equal decodes": [(5, 1), (5, 1)],
    "whole prompts": [(0, 9), (0, 1), (0, 4)],
    "one prompt": [(0, 23)],
    "chunks": [(7, 7), (1, 2), (14, 3)],
    "everything": [(9, 1), (0, 6), (8, 5), (31, 1), (0, 1)],
}


def spans_of(mix: list[tuple[int, int]]) -> Spans:
    lengths = np.array([fed for _, fed in mix])
    return Spans(
        rows=np.arange(len(mix), dtype=np.int32)[::-1].copy(),
        starts=np.array([start for start, _ in mix]),
        lengths=lengths,
        splits=np.concatenate(([0], np.cumsum(lengths))),
    )


def filled(mix: list[tuple[int, int]]) -> tuple[KvCache, PageTable, list[Tensor]]:
    """A cache with random KV of every row on shuffled pages; elsewhere, but for the null page, NaN."""
    rng, rows = np.random.default_rng(0), len(mix)
    cache = KvCache(CONFIG, pages=rows * 8 + 1, page_size=PAGE, dtype=torch.float32, device=CPU)
    page_table = PageTable(rows=rows, columns=8, device=CPU, is_apart=False)
    page_table.on_host[:] = 1 + rng.permutation(rows * 8).reshape(rows, 8)  # page 0 is nobody's
    cache.layers[0][:-1] = float("nan")
    kv_by_row = []
    for i, (start, fed) in enumerate(mix):
        row, kv = rows - 1 - i, torch.randn(start + fed, 2, KV_HEADS, HEAD_DIM)
        places = [int(page_table.on_host[row, p // PAGE]) * PAGE + p % PAGE for p in range(start + fed)]
        cache.tokens(0)[places] = kv
        kv_by_row.append(kv)
    return cache, page_table, kv_by_row


def definition(q: Tensor, kv: Tensor, start: int, window: int | None) -> Tensor:
    out = torch.empty(len(q), HEADS * HEAD_DIM)
    for i in range(len(q)):
        position = start + i
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(HEADS):
            keys, values = kv[first : position + 1, :, head // (HEADS // KV_HEADS)].unbind(1)
            weights = (keys @ q[i, head] * HEAD_DIM**-0.5).softmax(0)
            out[i, head * HEAD_DIM : (head + 1) * HEAD_DIM] = weights @ values
    return out


@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("group_elements", [1 << 20, 1 << 9, 1])
def test_against_the_definition(
    mix: list[tuple[int, int]], window: int | None, group_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "_GROUP_ELEMENTS", group_elements)
    torch.manual_seed(0)
    spans = spans_of(mix)
    cache, page_table, kv_by_row = filled(mix)
    q = torch.randn(int(spans.splits[-1]), HEADS, HEAD_DIM)
    expected = torch.cat(
        [
            definition(q[spans.splits[i] : spans.splits[i + 1]], kv, start, window)
            for i, ((start, _), kv) in enumerate(zip(mix, kv_by_row, strict=True))
        ]
    )
    paged = PagedAttention(CONFIG, cache, dtype=torch.float32)
    plan = paged.plan(spans, page_table, window)
    torch.testing.assert_close(paged(q, 0, plan), expected, rtol=1e-5, atol=1e-5)
    # A view into a packed projection, as the decoder passes it.
    packed = torch.randn(len(q), HEADS + 2 * KV_HEADS, HEAD_DIM)
    packed[:, :HEADS] = q
    torch.testing.assert_close(paged(packed[:, :HEADS], 0, plan), expected, rtol=1e-5, atol=1e-5)


def test_groups_keep_to_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "_GROUP_ELEMENTS", 40 * 2 * KV_HEADS * HEAD_DIM)
    mix = [(30, 1), (1, 1), (2, 1), (18, 1), (19, 1)]
    cache, page_table, _ = filled(mix)
    plan = PagedAttention(CONFIG, cache, dtype=torch.float32).plan(spans_of(mix), page_table, None)
    assert [len(group.keys) for group in plan] == [6, 40, 31]
    assert sorted(i for group in plan if group.queries is not None for i in group.queries.tolist()) == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_page_bytes_is_what_a_page_takes() -> None:
    cache = KvCache(CONFIG, pages=3, page_size=PAGE, dtype=torch.bfloat16, device=CPU)
    per_page = sum(layer[0].nbytes for layer in cache.layers)
    assert page_bytes(CONFIG, page_size=PAGE, dtype=torch.bfloat16) == per_page
