"""Attention over KV pages in plain torch: gather a group of sequences, then one fused attention call.

`plan` runs once per step and distinct window, on the host; the call runs once per layer. `attention_triton`
has the same two for a GPU.

Legend: T tokens of the batch, R rows, B rows of a group, Q query tokens of each, L keys of each (padded), H
query heads, K KV heads, G = H / K, D head dimension.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from executor.model.config import ModelConfig
from executor.model.kv_cache import KvCache
from executor.model.page_table import PageTable

# Gathering rows together saves calls until the copy leaves the processor's cache. Measured: 32 rows of 256
# tokens, 2 KV heads of 32, in one group 1.0 ms against 2.0 ms alone; 8 rows of 2048 tokens, 8 KV heads of
# 128, 150 ms against 44 ms.
_GROUP_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """The rows of a batch: row i feeds tokens `splits[i]:splits[i + 1]` at positions from `starts[i]`.

    All host arrays: rows int32[R] into the page table, starts and lengths int64[R], splits int64[R + 1].
    """

    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionGroup:
    """Sequences that attend in one call. `queries` picks their tokens of the batch; None means all, in order.

    `keys` int64[B * L] are token places in the cache. `mask` is additive, `[B, 1, 1, L]` for decode and
    `[Q, L]` for a chunk; without one every key is seen, or, with `causal`, those up to the query.
    """

    rows: int
    queries: Tensor | None
    keys: Tensor
    mask: Tensor | None = None
    causal: bool = False


AttentionPlan = tuple[AttentionGroup, ...]
Plan = TypeVar("Plan")


class Attention(Protocol[Plan]):
    """What the decoder asks of attention, whatever its plans look like."""

    def plan(self, spans: Spans, page_table: PageTable, window: int | None) -> Plan: ...

    def decode(
        self,
        qkv_TP: Tensor,
        layer: int,
        plan: Plan,
        kv_tokens_T: Tensor,
        rotary: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        /,
    ) -> Tensor | None:
        """`FusedSteps.rotate_store` and the call in one launch; None where a plan does not allow that."""
        ...

    def __call__(self, q_THD: Tensor, layer: int, plan: Plan) -> Tensor: ...


class PagedAttention:
    """Grouped-query attention for the CPU; any window, any mix of chunks and decodes."""

    def __init__(self, config: ModelConfig, cache: KvCache, *, dtype: torch.dtype) -> None:
        self._kv_heads = config.kv_heads
        self._group_size = config.heads // config.kv_heads
        self._head_dim = config.head_dim
        self._cache = cache
        self._dtype = dtype
        self._group_keys = max(1, _GROUP_ELEMENTS // (2 * config.kv_size))

    def plan(self, spans: Spans, page_table: PageTable, window: int | None) -> AttentionPlan:
        """Which keys each row sees."""
        pages = page_table.on_host
        decode = np.flatnonzero(spans.lengths == 1)
        groups = [
            self._plan_decode(group, spans, pages, window) for group in self._groups(decode, spans, window)
        ]
        groups += [
            self._plan_chunk(int(row), spans, pages, window) for row in np.flatnonzero(spans.lengths > 1)
        ]
        return tuple(groups)

    def decode(self, *_: object) -> None:
        """Nothing is launched here."""

    def __call__(self, q_THD: Tensor, layer: int, plan: AttentionPlan) -> Tensor:
        """Attend with rotated queries, this step's KV being in the cache already. Returns `[T, H * D]`."""
        if len(plan) == 1 and plan[0].queries is None:
            return self._attend(q_THD, layer, plan[0])
        out_TE = q_THD.new_empty(q_THD.shape[0], q_THD.shape[1] * q_THD.shape[2])
        for group in plan:
            assert group.queries is not None
            out_TE.index_copy_(
                0, group.queries, self._attend(q_THD.index_select(0, group.queries), layer, group)
            )
        return out_TE

    def _attend(self, q_BHD: Tensor, layer: int, group: AttentionGroup) -> Tensor:
        """One group; its query tokens come as B rows of one token, or one row of Q tokens."""
        kv = self._cache.tokens(layer).index_select(0, group.keys)
        if group.rows == len(q_BHD):  # decode: the G queries of a KV head stand where a sequence would
            kv_BL2KD = kv.view(group.rows, -1, 2, self._kv_heads, self._head_dim)
            q_BKGD = q_BHD.view(group.rows, self._kv_heads, self._group_size, self._head_dim)
            k_BKLD, v_BKLD = kv_BL2KD[:, :, 0].transpose(1, 2), kv_BL2KD[:, :, 1].transpose(1, 2)
            out_BKGD = scaled_dot_product_attention(q_BKGD, k_BKLD, v_BKLD, attn_mask=group.mask)
            return out_BKGD.reshape(group.rows, -1)
        # A chunk: KV heads stand where the batch would, so that their keys are shared without a copy.
        q_KGQD = q_BHD.view(-1, self._kv_heads, self._group_size, self._head_dim).permute(1, 2, 0, 3)
        k_KGLD = kv[:, 0].transpose(0, 1)[:, None].expand(-1, self._group_size, -1, -1)
        v_KGLD = kv[:, 1].transpose(0, 1)[:, None].expand(-1, self._group_size, -1, -1)
        out_KGQD = scaled_dot_product_attention(
            q_KGQD, k_KGLD, v_KGLD, attn_mask=group.mask, is_causal=group.causal
        )
        return out_KGQD.permute(2, 0, 1, 3).reshape(len(q_BHD), -1)

    def _groups(self, decode: np.ndarray, spans: Spans, window: int | None) -> list[np.ndarray]:
        """Split decoding rows so that each group's padded keys stay within a budget."""
        if not len(decode):
            return []
        visible = spans.starts[decode] + 1
        if window is not None:
            visible = np.minimum(visible, window)
        if visible.max() * len(decode) <= self._group_keys:
            return [decode]
        order = np.argsort(visible, kind="stable")
        groups, first = [], 0
        for end in range(1, len(order) + 1):
            if end == len(order) or visible[order[end]] * (end + 1 - first) > self._group_keys:
                groups.append(decode[order[first:end]])
                first = end
        return groups

    def _plan_decode(
        self, group: np.ndarray, spans: Spans, page_table: np.ndarray, window: int | None
    ) -> AttentionGroup:
        ends = spans.starts[group] + 1
        starts = np.zeros_like(ends) if window is None else np.maximum(ends - window, 0)
        positions_BL = starts[:, None] + np.arange((ends - starts).max())
        visible_BL = positions_BL < ends[:, None]
        keys_BL = np.where(
            visible_BL,
            self._places(spans.rows[group][:, None], np.minimum(positions_BL, ends[:, None] - 1), page_table),
            self._cache.null_token,
        )
        everything = len(group) == len(spans.rows)
        return AttentionGroup(
            rows=len(group),
            queries=None
            if everything and (np.diff(group) > 0).all()
            else torch.from_numpy(spans.splits[group]),
            keys=torch.from_numpy(keys_BL.reshape(-1)),
            mask=None if visible_BL.all() else self._additive(visible_BL[:, None, None]),
        )

    def _plan_chunk(
        self, row: int, spans: Spans, page_table: np.ndarray, window: int | None
    ) -> AttentionGroup:
        start, end = int(spans.starts[row]), int(spans.starts[row] + spans.lengths[row])
        first = 0 if window is None else max(0, start - window + 1)
        key_positions_L = np.arange(first, end)
        causal = start == 0 and (window is None or end <= window)
        mask = None
        if not causal:
            distance_QL = np.arange(start, end)[:, None] - key_positions_L
            mask = self._additive((distance_QL >= 0) & (distance_QL < (window or end)))
        everything = len(spans.rows) == 1
        return AttentionGroup(
            rows=1,
            queries=None if everything else torch.arange(int(spans.splits[row]), int(spans.splits[row + 1])),
            keys=torch.from_numpy(self._places(spans.rows[row], key_positions_L, page_table)),
            mask=mask,
            causal=causal,
        )

    def _places(self, rows: np.ndarray, positions: np.ndarray, page_table: np.ndarray) -> np.ndarray:
        return token_places(rows, positions, page_table, self._cache.page_size)

    def _additive(self, visible: np.ndarray) -> Tensor:
        return torch.from_numpy(np.where(visible, np.float32(0), np.float32(-np.inf))).to(self._dtype)


def token_places(
    rows: np.ndarray, positions: np.ndarray, page_table: np.ndarray, page_size: int
) -> np.ndarray:
    """Where tokens at `positions` of `rows` lie in the cache: int64, broadcast over the two."""
    pages, offsets = np.divmod(positions, page_size)
    return page_table[rows, pages].astype(np.int64) * page_size + offsets
