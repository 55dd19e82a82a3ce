"""A product of few tokens together with the adapters' share of it, in one launch.

lora_a's rows are more outputs of the same input: the first programs compute them and count themselves as
arrived; programs among those of the base's product wait for that and expand. Nothing is added up here: the
result is float32 parts, whose sum over the first dimension is the adapted output, and the kernel that follows
adds them. But for gate and up of several tokens: there, programs of the product wait for those that expand
their columns, add, and write silu(gate) * up. Every part is written whole, zeros included, by one program
each, so that the order of all sums is fixed.

Legend: T tokens, K in features, N out features, I half of them, C parts, R rank, E pairs of a tile and a
rank, S slots, L slices.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.launch import overlapping
from kernels.linear.tiles import Tile
from kernels.lora.batch import PackedSlice, check_packed
from kernels.lora.beside_matrix import matrix_kernel
from kernels.lora.beside_tiles import Beside
from kernels.lora.beside_vector import vector_kernel
from kernels.lora.table import UNIT_BYTES, SlotTable
from kernels.lora.tiles import Tiles

_MAX_SLICES = 3
_BLOCK_E = 64
_FEWEST_GATED = 32
"""Of a tile's tokens. With fewer, an engine's steps were no faster for it."""


def multiply(
    x_TK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    *,
    slices: Sequence[PackedSlice],
    tiles: Tiles,
    table: SlotTable,
    arrived: Tensor,
    cut: Beside,
    gated: bool = False,
) -> Tensor:
    """Float32 parts `[C, T, N]`. `gated`, silu(gate) * up of their sum, `[T, I]`, where the cut allows that,
    and parts otherwise. `arrived` are int32 zeros of this launch's own, one and one for each span.

    `slices` are consecutive, and so are their columns, from 0 on; none has a gain or a shift. Raises
    ValueError for what does not fit.
    """
    _check(x_TK, weight_NK, slices, tiles, table, cut.tile)
    if gated and (len(slices) != 2 or 2 * slices[0].stop != len(weight_NK)):
        raise ValueError(f"gate and up must be as wide: {slices}")
    tensors = x_TK, weight_NK, bias_N if bias_N is not None else weight_NK
    numbers = (
        tiles.count,
        slices[0].slice,
        table.scaling_SL.shape[1],
        tiles.rank,
        *[packed.stop for packed in slices],
        *[0] * (_MAX_SLICES - len(slices)),
    )
    constants = {
        "IN": weight_NK.shape[1],
        "ROWS": cut.tile.rows,
        "BLOCK_K": cut.tile.block_k,
        # Rows start at multiples of this many elements, which the compiler cannot see by itself.
        "GRAIN": 1 if weight_NK.shape[1] % 8 else 8,
        "BLOCK_E": _BLOCK_E,
        "SPAN": cut.span,
        "SLICES": len(slices),
        "UNIT": UNIT_BYTES // table.pool.element_size(),
        "HAS_BIAS": bias_N is not None,
    }
    spans = sum(-((packed.start - packed.stop) // cut.span) for packed in slices)
    if cut.tile.tokens == 1:
        return _vector(tensors, numbers, constants, tiles, table, arrived, cut.tile, spans)
    gated &= cut.tile.tokens >= _FEWEST_GATED and cut.tile.splits == 1 and spans // 2 < len(arrived)
    return _matrix(tensors, numbers, constants, tiles, table, arrived, cut, spans, gated)


def _vector(
    tensors: tuple[Tensor, Tensor, Tensor],
    numbers: tuple[int, ...],
    constants: dict[str, Any],
    tiles: Tiles,
    table: SlotTable,
    arrived: Tensor,
    tile: Tile,
    spans: int,
) -> Tensor:
    outputs, inputs = tensors[1].shape
    slices, chunks = constants["SLICES"], -(-inputs // tile.block_k)
    parts_CTN = torch.empty(2, 1, outputs, dtype=torch.float32, device=arrived.device)
    shrunk_CTLR = parts_CTN.new_empty(chunks, 1, slices, tiles.rank)
    shrinks = chunks * slices * -(-tiles.count * tiles.rank // tile.rows)
    products = -(-outputs // tile.rows)
    vector_kernel[(shrinks + products + spans,)](
        parts_CTN,
        *tensors,
        shrunk_CTLR,
        arrived,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        tiles.places,
        *numbers,
        shrinks,
        products,
        spans,
        outputs,
        **constants,
        CHUNKS=chunks,
        num_warps=tile.warps,
        **overlapping(),
    )
    return parts_CTN


def _matrix(
    tensors: tuple[Tensor, Tensor, Tensor],
    numbers: tuple[int, ...],
    constants: dict[str, Any],
    tiles: Tiles,
    table: SlotTable,
    arrived: Tensor,
    cut: Beside,
    spans: int,
    gated: bool,
) -> Tensor:
    tile, x_TK = cut.tile, tensors[0]
    tokens, outputs, slices = len(x_TK), len(tensors[1]), constants["SLICES"]
    of_adapters = max(1, tiles.rank // _BLOCK_E)
    parts = of_adapters + (0 if gated else tile.splits)
    parts_CTN = torch.empty(parts, tokens, outputs, dtype=torch.float32, device=arrived.device)
    shrunk_CTLR = parts_CTN.new_empty(cut.chunks, tokens, slices, tiles.rank)
    out = x_TK.new_empty(tokens, outputs // 2) if gated else parts_CTN
    shrinks = cut.chunks * slices * -(-tiles.count * tiles.rank // tile.rows)
    products = spans * cut.span // tile.rows if gated else -(-outputs // tile.rows) * tile.splits
    expands = spans * -(-tiles.count * tiles.rank // _BLOCK_E)
    matrix_kernel[(shrinks + products + expands,)](
        out,
        parts_CTN,
        *tensors,
        shrunk_CTLR,
        arrived,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        tiles.places,
        *numbers,
        shrinks,
        products,
        expands,
        outputs,
        tokens,
        x_TK.stride(0),
        **constants,
        CHUNKS=cut.chunks,
        IS_GATED=gated,
        PARTS=of_adapters,
        TOKENS=tile.tokens,
        SPLITS=tile.splits,
        PREFETCH=tile.prefetch,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **overlapping(),
    )
    return out


def _check(
    x_TK: Tensor,
    weight_NK: Tensor,
    slices: Sequence[PackedSlice],
    tiles: Tiles,
    table: SlotTable,
    tile: Tile,
) -> None:
    check_packed(tuple(slices), len(weight_NK), most=_MAX_SLICES)
    if x_TK.shape[1] != weight_NK.shape[1] or not 0 < len(x_TK) <= tile.tokens:
        raise ValueError(f"shapes do not fit: {x_TK.shape=}, {weight_NK.shape=}, {tile}")
    if x_TK.stride(1) != 1 or not weight_NK.is_contiguous() or weight_NK.dtype != table.pool.dtype:
        raise ValueError("x and weight need a contiguous last dimension, and the pool's dtype")
    is_rank_cut = _BLOCK_E % tiles.rank and tiles.rank % _BLOCK_E
    if is_rank_cut or not 0 < tiles.count <= tile.tokens:
        raise ValueError(f"{tiles.count} tiles of rank {tiles.rank} do not fit {tile}")
