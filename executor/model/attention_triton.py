"""Attention over KV pages on a GPU: the same calls as `attention.PagedAttention`, by Triton's kernels.

The page table lives on the device, so that a step sends only what it changed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from executor.model.attention import Spans
from executor.model.config import ModelConfig
from executor.model.kv_cache import KvCache
from executor.model.page_table import PageTable
from kernels.attention import QueryTiles, decode, fixed, paged
from kernels.attention.tiles import cut
from kernels.transfer import upload

# A split has at least this many keys; below, combining costs more than it brings.
_KEYS_OF_A_SPLIT = 64
_MAX_SPLITS = 32
# Programs that keep a GPU's memory busy: about two for each of an H100's 132 multiprocessors. More than these
# do not run at once, and then what `decode` does besides costs as much as launches of its own.
_ENOUGH_PROGRAMS = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TritonPlan:
    """Tiles of decoding rows, whose keys are split over programs, and tiles of chunks."""

    decodes: QueryTiles
    splits: int
    chunks: QueryTiles
    page_table: Tensor
    window: int | None


_NO_CHUNKS = np.empty((4, 0), dtype=np.int32)


class TritonAttention:
    """Grouped-query attention for a GPU; any window, any mix of chunks and decodes."""

    def __init__(
        self, config: ModelConfig, cache: KvCache, *, dtype: torch.dtype, deterministic: bool = False
    ) -> None:
        """`deterministic`: what a query gets depends on nothing but its sequence."""
        self._cache = cache
        self._kv_heads = config.kv_heads
        self._scale = config.head_dim**-0.5
        group = config.heads // config.kv_heads
        self._fuses = not deterministic
        # Where programs share a row, there are fewer rows times KV heads than programs.
        self._arrived = torch.zeros(_ENOUGH_PROGRAMS, dtype=torch.int32, device=cache.layers[0].device)
        if deterministic:
            self._attend, self._keys_of_a_split = fixed.attend, fixed.SEGMENT
            self.chunk_queries = fixed.queries_per_tile(group, dtype)
        else:
            self._attend, self._keys_of_a_split = paged.attend, _KEYS_OF_A_SPLIT
            self.chunk_queries = paged.queries_per_tile(group, config.head_dim, dtype)

    def plan(self, spans: Spans, page_table: PageTable, window: int | None) -> TritonPlan:
        """Which program computes which queries."""
        places = upload(page_table.device, *self.cut(spans))
        return TritonPlan(
            decodes=QueryTiles(places=places[0], queries=1),
            splits=self._splits(spans.starts[spans.lengths == 1] + 1, window),
            chunks=QueryTiles(places=places[1], queries=self.chunk_queries),
            page_table=page_table.on_device,
            window=window,
        )

    def cut(self, spans: Spans) -> tuple[np.ndarray, np.ndarray]:
        """The places of tiles of decoding rows, and those of tiles of chunks: int32 `[4, N]` each."""
        firsts = spans.splits[:-1]
        if spans.splits[-1] == len(firsts):  # a token each, as in most steps
            decodes = np.empty((4, len(firsts)), dtype=np.int32)
            decodes[0], decodes[1], decodes[2], decodes[3] = spans.rows, firsts, spans.starts, 1
            return decodes, _NO_CHUNKS
        is_decoding = spans.lengths == 1
        (decoding,) = is_decoding.nonzero()
        decodes = np.empty((4, len(decoding)), dtype=np.int32)
        decodes[0], decodes[1], decodes[2], decodes[3] = (
            spans.rows[decoding],
            firsts[decoding],
            spans.starts[decoding],
            1,
        )
        (longer,) = (~is_decoding).nonzero()
        chunks = cut(
            spans.rows[longer],
            firsts[longer],
            spans.starts[longer],
            spans.lengths[longer],
            self.chunk_queries,
        )
        # Of each row those that see most come first, so that none of them is left over at the end.
        return decodes, chunks[:, ::-1].copy()  # torch takes no negative strides

    def static_plan(
        self, decodes: Tensor, chunks: Tensor, page_table: PageTable, window: int | None
    ) -> TritonPlan:
        """A plan whose places, as `cut` makes them, are written later, step after step. The split does not
        depend on them, so that the plan suits short and long sequences.
        """
        wanted = min(_ENOUGH_PROGRAMS // (max(1, decodes.shape[1]) * self._kv_heads), _MAX_SPLITS)
        return TritonPlan(
            decodes=QueryTiles(places=decodes, queries=1),
            splits=_power_of_two(wanted),
            chunks=QueryTiles(places=chunks, queries=self.chunk_queries),
            page_table=page_table.on_device,
            window=window,
        )

    def decode(
        self,
        qkv_TP: Tensor,
        layer: int,
        plan: TritonPlan,
        kv_tokens_T: Tensor,
        rotary: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        /,
    ) -> Tensor | None:
        """For few rows that all decode, but in the deterministic mode. Shapes as in `decode.attend`."""
        if not self._fuses or plan.chunks.count or plan.decodes.count * self._kv_heads > _ENOUGH_PROGRAMS:
            return None
        kv_PS2KD = self._cache.layers[layer]
        width = qkv_TP.shape[-1] - 2 * self._kv_heads * kv_PS2KD.shape[-1]
        out_TE = kv_PS2KD.new_empty(qkv_TP.shape[-2], width)
        decode.attend(
            out_TE,
            qkv_TP,
            kv_PS2KD,
            plan.page_table,
            plan.decodes,
            kv_tokens_T,
            rotary,
            norms,
            eps,
            scale=self._scale,
            arrived=self._arrived,
            window=plan.window,
            splits=plan.splits,
        )
        return out_TE

    def __call__(self, q_THD: Tensor, layer: int, plan: TritonPlan) -> Tensor:
        """Attend with rotated queries, this step's KV being in the cache already. Returns `[T, H * D]`."""
        out_TE = q_THD.new_empty(q_THD.shape[0], q_THD.shape[1] * q_THD.shape[2])
        for tiles, splits in ((plan.decodes, plan.splits), (plan.chunks, 1)):
            self._attend(
                out_TE,
                q_THD,
                self._cache.layers[layer],
                plan.page_table,
                tiles,
                scale=self._scale,
                window=plan.window,
                splits=splits,
            )
        return out_TE

    def _splits(self, visible: np.ndarray, window: int | None) -> int:
        """How many programs share a row's keys: a power of two, more where few rows are long."""
        if not len(visible):
            return 1
        longest = int(visible.max()) if window is None else min(int(visible.max()), window)
        wanted = min(
            _ENOUGH_PROGRAMS // (len(visible) * self._kv_heads), longest // self._keys_of_a_split, _MAX_SPLITS
        )
        return _power_of_two(wanted)


def _power_of_two(most: int) -> int:
    return 1 << max(0, most.bit_length() - 1)
