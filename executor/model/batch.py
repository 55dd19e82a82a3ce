"""One forward's inputs: a flat batch of tokens, their places in the cache and their adapters."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from executor.model.attention import AttentionPlan, PagedAttention, Spans, token_places
from kernels.lora import LoraBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """T tokens of rows sorted by adapter slot, base rows first, so that each adapter's tokens are contiguous.

    input_ids, positions and kv_tokens are int64 `[T]`; `attention` holds one plan for each distinct window.
    """

    input_ids: Tensor
    positions: Tensor
    kv_tokens: Tensor
    attention: Mapping[int | None, AttentionPlan]
    lora: LoraBatch


def build_batch(
    spans: Spans,
    *,
    input_ids: np.ndarray,
    slots: np.ndarray,
    page_table: np.ndarray,
    page_size: int,
    attention: PagedAttention,
    windows: tuple[int | None, ...],
) -> Batch:
    """From host arrays: `spans` and `slots` int64[R] of rows sorted by slot, `input_ids` int64[T], the page
    table.
    """
    offsets = np.repeat(spans.starts - spans.splits[:-1], spans.lengths)
    positions = offsets + np.arange(len(input_ids))
    kv_tokens = token_places(np.repeat(spans.rows, spans.lengths), positions, page_table, page_size)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        positions=torch.from_numpy(positions),
        kv_tokens=torch.from_numpy(kv_tokens),
        attention={window: attention.plan(spans, page_table, window) for window in windows},
        lora=LoraBatch.of_rows(slots, spans.lengths),
    )
