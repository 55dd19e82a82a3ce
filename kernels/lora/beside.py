"""A product of few tokens together with the adapters' share of it, in one launch.

lora_a's rows are more outputs of the same input: the first programs compute them and count themselves as
arrived; programs among those of the base's product wait for that and expand. Nothing is added up here: the
result is float32 parts, whose sum over the first dimension is the adapted output, and the kernel that follows
adds them. Every part is written whole, zeros included, by one program each, so that the order of all sums is
fixed.

Legend: T tokens, K in features, N out features, C parts, R rank, E pairs of a tile and a rank, S slots, L
slices.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

from collections.abc import Sequence

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
) -> Tensor:
    """Float32 parts `[C, T, N]`; `arrived` is an int32 zero of this launch's own.

    `slices` are consecutive, and so are their columns, from 0 on; none has a gain or a shift. Raises
    ValueError for what does not fit.
    """
    tile = cut.tile
    _check(x_TK, weight_NK, slices, tiles, table, tile)
    tokens, (outputs, inputs) = len(x_TK), weight_NK.shape
    stops = [packed.stop for packed in slices] + [0] * (_MAX_SLICES - len(slices))
    rank, count = tiles.rank, tiles.count
    is_vector = tile.tokens == 1
    parts = tile.splits + (1 if is_vector else max(1, rank // _BLOCK_E))
    parts_CTN = torch.empty(parts, tokens, outputs, dtype=torch.float32, device=x_TK.device)
    chunks = -(-inputs // tile.block_k) if is_vector else cut.chunks
    shrunk = torch.empty(chunks, tokens, len(slices), rank, dtype=torch.float32, device=x_TK.device)
    rows = len(slices) * -(-count * rank // tile.rows)
    shrinks = chunks * rows
    products = -(-outputs // tile.rows) * tile.splits
    spans = sum(-((packed.start - packed.stop) // cut.span) for packed in slices)
    expands = spans * (1 if is_vector else -(-count * rank // _BLOCK_E))
    common = (
        parts_CTN,
        x_TK,
        weight_NK,
        bias_N if bias_N is not None else weight_NK,
        shrunk,
        arrived,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        tiles.places,
        count,
        slices[0].slice,
        table.scaling_SL.shape[1],
        rank,
        *stops,
        shrinks,
        products,
        expands,
        outputs,
    )
    constants = {
        "IN": inputs,
        "ROWS": tile.rows,
        "BLOCK_K": tile.block_k,
        # Rows start at multiples of this many elements, which the compiler cannot see by itself.
        "GRAIN": 1 if inputs % 8 else 8,
        "BLOCK_E": _BLOCK_E,
        "SPAN": cut.span,
        "CHUNKS": chunks,
        "SLICES": len(slices),
        "UNIT": UNIT_BYTES // table.pool.element_size(),
        "HAS_BIAS": bias_N is not None,
    }
    grid = (shrinks + products + expands,)
    if is_vector:
        vector_kernel[grid](*common, **constants, num_warps=tile.warps, **overlapping())
    else:
        matrix_kernel[grid](
            *common,
            tokens,
            x_TK.stride(0),
            **constants,
            TOKENS=tile.tokens,
            SPLITS=tile.splits,
            PREFETCH=tile.prefetch,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **overlapping(),
        )
    return parts_CTN


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
