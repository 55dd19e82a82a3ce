"""Experts and their LoRA in hardly more launches than the base's own, where `kernels.moe.gpu` computes it.

Semantics: those of `kernels.moe.reference.experts` with the hooks of `reference`; results rounded where it
rounds or less often. The first product's launch has programs that shrink beside those that multiply; the
activation expands gate and up and shrinks its own results for down; the sum over a token's experts expands
those, or of many tokens the second product.

Legend: as in `gpu_parts`; T tokens, N outputs of a program, D hidden, I an expert's width.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

from typing import Any

import torch
from torch import Tensor

from kernels.launch import overlapping
from kernels.lora.table import UNIT_BYTES, SlotTable
from kernels.moe import gpu_products
from kernels.moe.gpu_routing import Arrangement
from kernels.moe.interface import ExpertWeights
from kernels.moe.routing import Routing
from kernels.moe.tiles import Tile, Tiles, choose
from kernels.moe_lora import fused_kernels, fused_vectors
from kernels.moe_lora.gpu import Runs, check, k_splits
from kernels.moe_lora.hooks import ExpertLora

MOST_RANK = 64
MOST_TOKENS_TO_SUM = 128
"""Up to here the sum over a token's experts expands, since it need not wait for lora_b; above, the product
does, which reads it once for many pairs.
"""
_FEW_PAIRS = 128


def experts(x_TD: Tensor, routing: Routing, weights: ExpertWeights, *, lora: ExpertLora) -> Tensor:
    """Of ranks up to `MOST_RANK`. Raises ValueError for what does not fit."""
    tiles = choose(*routing.experts_TX.shape, len(weights.down_EDI))
    runs = lora.runs(routing, block=tiles.down.pairs)
    first_slice, table = lora.first_slice, lora.table
    check(x_TD, table)
    if not 0 < runs.rank <= MOST_RANK:
        raise ValueError(f"rank {runs.rank} is not in 1..{MOST_RANK}")
    fused = _Launches(runs, tiles, first_slice, table)
    if runs.arrangement is None:
        y_P2I, rank_CP2R = fused_vectors.gate_up(
            x_TD, weights.gate_up_E2ID, runs, first_slice=first_slice, table=table
        )
        wide_PI, rank_CPR = fused.middle(y_P2I, rank_CP2R)
        return fused_vectors.down(
            wide_PI, weights.down_EDI, rank_CPR, runs, first_slice=first_slice, table=table
        )
    y_P2I, rank_CP2R = fused.gate_up(x_TD, weights.gate_up_E2ID)
    wide_PI, rank_CPR = fused.middle(y_P2I, rank_CP2R)
    if len(x_TD) <= MOST_TOKENS_TO_SUM:
        y_PD = gpu_products.down(wide_PI, weights.down_EDI, routing, runs.arrangement, tiles.down)
        return fused.add_up(y_PD, rank_CPR)
    y_PD = fused.down(wide_PI, weights.down_EDI, rank_CPR)
    return gpu_products.add_up(y_PD, routing)


class _Launches:
    """What the three launches share."""

    def __init__(self, runs: Runs, tiles: Tiles, first_slice: int, table: SlotTable) -> None:
        self._runs, self._tiles, self._table = runs, tiles, table
        self._first_slice = first_slice
        self._pairs, self._top_k = runs.routing.experts_TX.numel(), runs.routing.experts_TX.shape[1]
        self._addresses = table.pool, table.rows_SL6, table.scaling_SL
        self._constants: dict[str, Any] = {
            "UNIT": UNIT_BYTES // table.pool.element_size(),
            "TOP_K": self._top_k,
            "ALONE": runs.arrangement is None,
            "PRECISION": gpu_products.precision(table.pool),
        } | overlapping()

    def gate_up(self, x_TD: Tensor, weight_E2ID: Tensor) -> tuple[Tensor, Tensor]:
        """y `[P, 2 I]`, and the shrunk pairs of both halves."""
        runs, (_, outputs, inputs), tile = self._runs, weight_E2ID.shape, self._tiles.gate_up
        # Beside the base's programs, whose memory they take up, few and long.
        splits = 1 if self._pairs > _FEW_PAIRS else k_splits(inputs)
        y_P2I = x_TD.new_empty(self._pairs, outputs)
        rank_CP2R = x_TD.new_empty((splits, self._pairs, 2, runs.rank), dtype=torch.float32)
        count, tiles_3N = _tiles_of(runs, tile)
        shrinks = runs.count * splits * -(-runs.rank // 16)
        fused_kernels.gate_up_kernel[(shrinks + count * -(-outputs // tile.rows),)](
            y_P2I,
            rank_CP2R,
            x_TD,
            weight_E2ID,
            *self._addresses,
            *runs.tensors,
            tiles_3N,
            runs.count,
            count,
            shrinks,
            self._pairs,
            self._first_slice,
            self._table.scaling_SL.shape[1],
            runs.rank,
            outputs,
            IN=inputs,
            SPLITS=splits,
            BLOCK_R=16,
            BLOCK_RUN=runs.block,
            **_cut(tile),
            **self._constants,
        )
        return y_P2I, rank_CP2R

    def middle(self, y_P2I: Tensor, rank_CP2R: Tensor) -> tuple[Tensor, Tensor]:
        """The activation `[P, I]`, and what it is shrunk to for down."""
        runs, wide = self._runs, y_P2I.shape[1] // 2
        block_i = 128 if runs.block < 64 else 64
        blocks = -(-wide // block_i)
        splits = blocks if self._pairs <= _FEW_PAIRS else 2
        wide_PI = y_P2I.new_empty(self._pairs, wide)
        rank_CPR = rank_CP2R.new_empty(splits, self._pairs, 1, runs.rank)
        fused_kernels.middle_kernel[(runs.count, splits)](
            wide_PI,
            rank_CPR,
            y_P2I,
            rank_CP2R,
            *self._addresses,
            *runs.tensors,
            runs.count,
            self._pairs,
            self._first_slice,
            self._table.scaling_SL.shape[1],
            runs.rank,
            WIDE=wide,
            BLOCK_I=block_i,
            BLOCKS=-(-blocks // splits),
            SPLITS=len(rank_CP2R),
            BLOCK_R=runs.block_r,
            BLOCK_B=runs.block,
            HALVES=y_P2I.dtype != torch.float32,
            num_warps=4,
            num_stages=2,
            **self._constants,
        )
        return wide_PI, rank_CPR

    def down(self, wide_PI: Tensor, weight_EDI: Tensor, rank_CPR: Tensor) -> Tensor:
        """`[P, D]`."""
        runs, (_, outputs, inputs), tile = self._runs, weight_EDI.shape, self._tiles.down
        y_PD = wide_PI.new_empty(self._pairs, outputs)
        count, tiles_3N = _tiles_of(runs, tile)
        experts_TX, slots_T, order_P, _ = runs.tensors
        fused_kernels.down_kernel[(count, -(-outputs // tile.rows))](
            y_PD,
            wide_PI,
            weight_EDI,
            rank_CPR,
            self._table.pool,
            self._table.rows_SL6,
            experts_TX,
            slots_T,
            order_P,
            tiles_3N,
            count,
            self._pairs,
            self._first_slice + 2,
            self._table.scaling_SL.shape[1],
            runs.rank,
            outputs,
            IN=inputs,
            SPLITS=len(rank_CPR),
            BLOCK_R=runs.block_r,
            HALVES=wide_PI.dtype != torch.float32,
            **_cut(tile),
            **self._constants,
        )
        return y_PD

    def add_up(self, y_PD: Tensor, rank_CPR: Tensor) -> Tensor:
        """Each token's pairs, expanded, times their weights: `[T, D]`."""
        runs, (experts_TX, weights_TX) = self._runs, self._runs.routing
        tokens, hidden = len(experts_TX), y_PD.shape[1]
        out_TD = y_PD.new_empty(tokens, hidden)
        rows = 1024 // runs.block_r
        fused_kernels.add_up_kernel[(-(-hidden // rows), tokens)](
            out_TD,
            y_PD,
            rank_CPR,
            self._table.pool,
            self._table.rows_SL6,
            experts_TX,
            runs.slots_T,
            weights_TX,
            self._pairs,
            self._first_slice + 2,
            self._table.scaling_SL.shape[1],
            runs.rank,
            HIDDEN=hidden,
            SPLITS=len(rank_CPR),
            BLOCK_R=runs.block_r,
            BLOCK_X=1 << (self._top_k - 1).bit_length(),
            ROWS=rows,
            UNIT=self._constants["UNIT"],
            TOP_K=self._top_k,
            num_warps=4,
            **overlapping(),
        )
        return out_TD


def _tiles_of(runs: Runs, tile: Tile) -> tuple[int, Tensor]:
    """The base's tiles, and how many; each pair is one where there is no arrangement."""
    made: Arrangement | None = runs.arrangement
    if made is None:
        return runs.count, runs.routing.experts_TX
    if made.block != tile.pairs:
        raise ValueError(f"pairs are arranged in tiles of {made.block}, not {tile.pairs}")
    return made.tiles_3N.shape[1], made.tiles_3N


def _cut(tile: Tile) -> dict[str, int]:
    return {
        "ROWS": tile.rows,
        "BLOCK_B": tile.pairs,
        "BLOCK_K": tile.block_k,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
