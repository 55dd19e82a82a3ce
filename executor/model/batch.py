"""One forward's inputs: a flat batch of tokens, their places in the cache and their adapters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from executor.control.plan import LAST_SAMPLED
from executor.model.attention import Attention, Spans, token_places
from executor.model.page_table import PageTable
from kernels.lora import LoraBatch
from kernels.transfer import upload


class Sampled(NamedTuple):
    """The tokens whose logits are sampled, and their rows: both int64 `[S]`."""

    tokens: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """T tokens of rows sorted by adapter slot, base rows first, so that each adapter's tokens are contiguous.

    input_ids, positions and kv_tokens are integers `[T]`; a kv_token of -1 is not stored. `attention` holds
    one plan for each distinct window.
    """

    input_ids: Tensor
    positions: Tensor
    kv_tokens: Tensor
    attention: Mapping[int | None, Any]
    lora: LoraBatch


def build_batch(
    spans: Spans,
    *,
    input_ids: np.ndarray,
    last_sampled: Tensor,
    sampled: np.ndarray,
    lora: LoraBatch,
    page_table: PageTable,
    page_size: int,
    attention: Attention[Any],
    windows: tuple[int | None, ...],
) -> tuple[Batch, Sampled]:
    """From host arrays: `spans` of rows sorted by slot, `input_ids` int64[T], `sampled` int64[S] which of the
    spans are sampled.

    Where an id is `LAST_SAMPLED`, the row's own of `last_sampled`, int64 `[rows]` on the device, takes its
    place.
    """
    rows = np.repeat(spans.rows, spans.lengths).astype(np.int64)
    positions = np.repeat(spans.starts - spans.splits[:-1], spans.lengths) + np.arange(len(input_ids))
    ids_T, rows_T, positions_T, kv_tokens_T, sampled_tokens_S, sampled_rows_S = upload(
        last_sampled.device,
        input_ids,
        rows,
        positions,
        token_places(rows, positions, page_table.on_host, page_size),
        spans.splits[1:][sampled] - 1,
        spans.rows[sampled].astype(np.int64),
    )
    if (input_ids == LAST_SAMPLED).any():
        ids_T = torch.where(ids_T == LAST_SAMPLED, last_sampled.index_select(0, rows_T), ids_T)
    batch = Batch(
        input_ids=ids_T,
        positions=positions_T,
        kv_tokens=kv_tokens_T,
        attention={window: attention.plan(spans, page_table, window) for window in windows},
        lora=lora,
    )
    return batch, Sampled(tokens=sampled_tokens_S, rows=sampled_rows_S)
