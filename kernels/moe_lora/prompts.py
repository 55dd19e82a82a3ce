"""Experts and their LoRA where experts have many pairs each, as in prompts: lora_a ahead of each product, and
lora_b within it; see `prompts_kernels`.

Semantics: those of `kernels.moe.reference.experts` with the hooks of `reference`; results rounded where it
rounds or less often.

Legend: as in `prompts_kernels`; T tokens, D hidden, I an expert's width.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

import torch
from torch import Tensor

from kernels.launch import overlapping
from kernels.lora.table import UNIT_BYTES
from kernels.moe import gpu_products
from kernels.moe.gpu_routing import Arrangement
from kernels.moe.interface import ExpertWeights, Pairs
from kernels.moe.routing import Routing
from kernels.moe.tiles import Tile, Tiles
from kernels.moe_lora import prompts_kernels
from kernels.moe_lora.gpu_runs import block_of_ranks
from kernels.moe_lora.hooks import ExpertLora

LEAST_PAIRS = 64
"""Of a tile; from there on, this is faster than `fused`,"""
LEAST_SHARE, _SMALL_RANK = 48, 32
"""but of small ranks only where an expert has so many."""
_GRAIN = 8
"""Features that lie side by side: any hidden size and width must be a multiple."""
INPUTS = 64
"""Of a product at a time; of lora_b's, half of them have one slot and half another."""
SHRINK = Tile(pairs=32, rows=64, block_k=128, warps=4, stages=3)
_TURNS = 4
"""Programs of a tile at most that have its slots in turn."""


def serves(tile: Tile, rank: int, pairs: int, weights: ExpertWeights) -> bool:
    """Whether tiles of so many pairs of a batch are to be computed here."""
    experts, hidden, wide = weights.down_EDI.shape
    are_many = pairs >= LEAST_SHARE * experts or rank > _SMALL_RANK
    return are_many and tile.pairs >= LEAST_PAIRS and hidden % _GRAIN == wide % _GRAIN == 0


def with_lora(tiles: Tiles) -> Tiles:
    """Of as many pairs as the base's. Where lora_b are found takes two more stages."""
    pairs = tiles.down.pairs
    tile = Tile(pairs, 128, INPUTS, 4 if pairs <= 64 else 8, 5)
    return Tiles(tile, tile)


def _registers(tile: Tile) -> int:
    """Of a thread, so that a processor has room for three programs, or two of the largest."""
    return (64 << 10) // ((3 if tile.pairs <= 64 else 2) * 32 * tile.warps) // 8 * 8


def _parts(lora: ExpertLora) -> int:
    """In which shrunk numbers are kept, so that nothing is lost."""
    return 2 if lora.table.pool.element_size() == 2 else 1


def experts(
    x_TD: Tensor, routing: Routing, weights: ExpertWeights, made: Arrangement, tiles: Tiles, lora: ExpertLora
) -> Pairs:
    """Of ranks up to `fused.MOST_RANK`; the arrangement has turns."""
    assert made.met_NS is not None
    tiles_of, slots = made.tiles_5N.shape[1], made.met_NS.shape[1] - 1
    found_NS4 = torch.empty(tiles_of, slots, 4, dtype=torch.int64, device=x_TD.device)
    shrunk_PLR = shrink(x_TD, routing, made, found_NS4, lora, is_down=False)
    wide_PI = multiply(
        x_TD, weights.gate_up_E2ID, shrunk_PLR, found_NS4, routing, made, tiles.gate_up, lora, is_down=False
    )
    shrunk_PLR = shrink(wide_PI, routing, made, found_NS4, lora, is_down=True)
    y_PD = multiply(
        wide_PI, weights.down_EDI, shrunk_PLR, found_NS4, routing, made, tiles.down, lora, is_down=True
    )
    return Pairs(y_PD, routing)


def shrink(
    x_K: Tensor, routing: Routing, made: Arrangement, found_NS4: Tensor, lora: ExpertLora, *, is_down: bool
) -> Tensor:
    """`[P, slices, parts x R]` by place, of gate and up, which also fills `found`; or of down."""
    table, block_r, slices = lora.table, block_of_ranks(lora.rank), 1 if is_down else 2
    parts = _parts(lora)
    shrunk_PLR = x_K.new_empty(routing.experts_TX.numel(), slices, parts * block_r)
    tiles, slots = found_NS4.shape[:2]
    rows, turns = min(SHRINK.rows, slices * block_r), min(_TURNS, slots)
    prompts_kernels.shrink_kernel[(tiles, turns * (slices * block_r // rows))](
        shrunk_PLR,
        found_NS4,
        x_K,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        made.order_P,
        made.tiles_5N,
        made.turns_P,
        made.met_NS,
        tiles,
        turns,
        slots,
        lora.first_slice,
        table.scaling_SL.shape[1],
        IN=x_K.shape[1],
        TOP_K=routing.experts_TX.shape[1],
        IS_DOWN=is_down,
        ROWS=rows,
        BLOCK_B=made.block,
        BLOCK_P=SHRINK.pairs,
        BLOCK_K=SHRINK.block_k * parts // 2,
        BLOCK_R=block_r,
        PARTS=parts,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        PRECISION=gpu_products.precision(table.pool),
        num_warps=SHRINK.warps,
        num_stages=SHRINK.stages,
        maxnreg=_registers(SHRINK),
        **overlapping(),
    )
    return shrunk_PLR


def multiply(
    x_K: Tensor,
    weight_ENK: Tensor,
    shrunk_PLR: Tensor,
    found_NS4: Tensor,
    routing: Routing,
    made: Arrangement,
    tile: Tile,
    lora: ExpertLora,
    *,
    is_down: bool,
) -> Tensor:
    """Gate and up of `x` `[T, D]`, activated: `[P, I]`; or down of those: `[P, D]`; with LoRA. Raises
    ValueError for what does not fit.
    """
    (_, outputs, inputs), table, block_r = weight_ENK.shape, lora.table, block_of_ranks(lora.rank)
    pairs, top_k = routing.experts_TX.numel(), routing.experts_TX.shape[1]
    if x_K.shape != (pairs if is_down else pairs // top_k, inputs) or made.block != tile.pairs:
        raise ValueError(f"shapes do not fit: {x_K.shape=}, {weight_ENK.shape=}, {tile=}, {pairs=}")
    if not (x_K.is_contiguous() and weight_ENK.is_contiguous()):
        raise ValueError("x and weights must be contiguous")
    y_PN = x_K.new_empty(pairs, outputs if is_down else outputs // 2)
    tiles, slots = found_NS4.shape[:2]
    prompts_kernels.product_kernel[(tiles, -(-outputs // tile.rows))](
        y_PN,
        shrunk_PLR,
        found_NS4,
        x_K,
        weight_ENK,
        table.pool,
        made.order_P,
        made.tiles_5N,
        made.turns_P,
        made.met_NS,
        tiles,
        slots,
        outputs,
        IN=inputs,
        TOP_K=top_k,
        IS_DOWN=is_down,
        ALIGNED=y_PN.shape[1] % gpu_products.ALIGNMENT == 0,
        ROWS=tile.rows,
        BLOCK_B=tile.pairs,
        BLOCK_K=INPUTS,
        BLOCK_R=block_r,
        PARTS=shrunk_PLR.shape[2] // block_r,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        PRECISION=gpu_products.precision(table.pool),
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=_registers(tile),
        **overlapping(),
    )
    return y_PN
