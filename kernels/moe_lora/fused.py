"""Experts and their LoRA in no more launches than the base's own, where `kernels.moe.gpu` computes it.

Semantics: those of `kernels.moe.reference.experts` with the hooks of `reference`; results rounded where it
rounds or less often. Both products' launches have programs that shrink beside those that multiply, which wait
for them at their end and expand.

Legend: as in `gpu_parts`; T tokens, N outputs of a program, D hidden, I an expert's width.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

import torch
from torch import Tensor

from kernels.launch import overlapping
from kernels.lora.table import UNIT_BYTES
from kernels.moe import gpu_products
from kernels.moe.gpu_routing import Arrangement, arrange
from kernels.moe.gpu_turns import Sharing
from kernels.moe.gpu_vectors import MOST_TOKENS
from kernels.moe.interface import ExpertWeights, Pairs
from kernels.moe.routing import Routing
from kernels.moe.tiles import Tile, Tiles, choose
from kernels.moe_lora import fused_kernels, fused_sum, fused_vectors, prompts
from kernels.moe_lora.gpu import check
from kernels.moe_lora.gpu_runs import block_of_ranks
from kernels.moe_lora.hooks import ExpertLora

MOST_RANK = 64
_SHRINKS = 2
"""Programs at most that shrink a tile's pairs; each may have several groups of rows of lora_a."""
_COLUMNS = 64
"""Of lora_b, of several slots side by side."""
_EARLY_RANK = 16
"""Up to it, registers do for shrunk numbers during the product, too."""
_SHARED_PAIRS, SHARED_RANK = 64, 64
"""From there on, of a tile and an adapter, what experts share is worth finding."""
_MOST_AHEAD = 1024
"""Shrunk numbers of a tile and slice: where there are more, registers are too few for lora_b, too."""
_REGISTERS = 168
"""Of a thread, so that a processor has room for three programs of four warps."""


def experts(x_TD: Tensor, routing: Routing, weights: ExpertWeights, *, lora: ExpertLora) -> Tensor | Pairs:
    """Of ranks up to `MOST_RANK`. Raises ValueError for what does not fit."""
    check(x_TD, lora.table)
    if not 0 < lora.rank <= MOST_RANK:
        raise ValueError(f"rank {lora.rank} is not in 1..{MOST_RANK}")
    if len(x_TD) <= MOST_TOKENS:
        runs = lora.runs(routing)
        return fused_vectors.experts(x_TD, weights, runs, first_slice=lora.first_slice, table=lora.table)
    tiles = with_lora(choose(*routing.experts_TX.shape, len(weights.down_EDI)))
    slots = 1 + min(lora.slots, tiles.down.pairs)
    slots_T = lora.slots_of(routing)
    experts, sharing = len(weights.down_EDI), None
    is_long = tiles.down.pairs >= _SHARED_PAIRS and block_of_ranks(lora.rank) >= SHARED_RANK
    if lora.batch.shares and is_long and experts > 1:
        sharing = Sharing(lora.table.rows_SL6, lora.table.scaling_SL, lora.first_slice)
    made = arrange(routing, experts, block=tiles.down.pairs, slots_T=slots_T, slots=slots, sharing=sharing)
    pairs = routing.experts_TX.numel()
    if sharing is None and prompts.serves(tiles.down, lora.rank, pairs, weights):
        return prompts.experts(x_TD, routing, weights, made, prompts.with_lora(tiles), lora)
    wide_PI, _ = multiply(x_TD, weights.gate_up_E2ID, routing, made, tiles.gate_up, lora, is_down=False)
    y_PD, shrunk_PR = multiply(wide_PI, weights.down_EDI, routing, made, tiles.down, lora, is_down=True)
    if sharing is None:
        return Pairs(y_PD, routing)
    return fused_sum.add_up(
        y_PD, shrunk_PR, routing, slots_T, first_slice=lora.first_slice + 2, table=lora.table
    )


def with_lora(tiles: Tiles) -> Tiles:
    """The base's tiles, of fewer stages or warps: what programs do at their end is hidden by others."""
    gate_up, down = tiles
    if gate_up.pairs <= 32:
        return Tiles(gate_up._replace(stages=3), down._replace(stages=3))
    if gate_up.pairs <= 64:
        return Tiles(gate_up._replace(warps=4), down)
    return tiles


def multiply(
    x_K: Tensor,
    weight_ENK: Tensor,
    routing: Routing,
    made: Arrangement,
    tile: Tile,
    lora: ExpertLora,
    *,
    is_down: bool,
) -> tuple[Tensor, Tensor]:
    """Gate and up of `x` `[T, D]`, activated: `[P, I]`; or down of those: `[P, D]`; with LoRA. An arrangement
    does for one of each. Raises ValueError for what does not fit.
    """
    (_, outputs, inputs), table = weight_ENK.shape, lora.table
    pairs, top_k = routing.experts_TX.numel(), routing.experts_TX.shape[1]
    if x_K.shape != (pairs if is_down else pairs // top_k, inputs) or made.block != tile.pairs:
        raise ValueError(f"shapes do not fit: {x_K.shape=}, {weight_ENK.shape=}, {tile=}, {pairs=}")
    if not (x_K.is_contiguous() and weight_ENK.is_contiguous()):
        raise ValueError("x and weights must be contiguous")
    slices, block_r = 1 if is_down else 2, block_of_ranks(lora.rank)
    y_PN = x_K.new_empty(pairs, outputs if is_down else outputs // 2)
    assert made.turns_P is not None
    assert made.met_NS is not None
    tokens_too = len(made.turns_P) - pairs
    shrunk_PLR = x_K.new_empty((pairs + tokens_too, slices, block_r), dtype=torch.float32)
    slots = made.met_NS.shape[1] - 1
    shrinks = min(_SHRINKS, -(-slots * slices * block_r // tile.rows))
    tiles, token_tiles = made.tiles_5N.shape[1], -(-tokens_too // tile.pairs)
    of_tokens, is_ahead = 0 if is_down else token_tiles, tile.pairs * block_r <= _MOST_AHEAD
    fused_kernels.product_kernel[(of_tokens * shrinks + tiles * (shrinks + -(-outputs // tile.rows)),)](
        y_PN,
        shrunk_PLR,
        x_K,
        weight_ENK,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        made.order_P,
        made.tiles_5N,
        made.turns_P,
        made.met_NS,
        tiles,
        pairs,
        of_tokens,
        shrinks,
        slots + 1,
        lora.first_slice + (2 if is_down else 0),
        table.scaling_SL.shape[1],
        outputs,
        IN=inputs,
        TOP_K=top_k,
        IS_DOWN=is_down,
        AHEAD=is_ahead,
        EARLY=is_ahead and block_r <= _EARLY_RANK and not tokens_too,
        SHARES=tokens_too > 0,
        ALIGNED=y_PN.shape[1] % gpu_products.ALIGNMENT == 0,
        ROWS=tile.rows,
        BLOCK_B=tile.pairs,
        BLOCK_K=tile.block_k,
        BLOCK_S=min(max(1, _COLUMNS // block_r), 1 << (slots - 1).bit_length()),
        BLOCK_R=block_r,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        HALVES=x_K.dtype != torch.float32,
        PRECISION=gpu_products.precision(table.pool),
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=_REGISTERS if tile.warps == 4 and tile.rows == 64 else None,
        **overlapping(),
    )
    return y_PN, shrunk_PLR
