"""LoRA in Triton: one shrink and one expand for all tokens and all slices of a packed projection.

Semantics: those of `reference`. Programs read a slice's addresses, rank and scaling from the slot table, so
that adapters of any rank share a launch and each costs what its own rank costs; rank 0 ends a program at
once. An expand comes after the base's product, in place, where there are gains and shifts, or ahead of it,
which saves reading what the product wrote: the product is then added to it. Each output is written by one
program. Sums are taken in float32 in an order that does not depend on other tokens' adapters; splits of K are
summed by the expand, those of many tokens by the last of their programs to end (`prompt_shrink`). The scaling
is applied in rank space. After S-LoRA (Sheng et al. 2023) and Punica (Chen et al. 2023).

Legend: T tokens, K in features, N out features of the packed projection, R rank, S slots, L slices, C splits
of K.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.launch import overlapping
from kernels.lora import prompt_shrink, streamed_expand
from kernels.lora.batch import PackedSlice, check_packed
from kernels.lora.gpu_kernels import FILLED, expand_kernel, shrink_kernel
from kernels.lora.gpu_tiles import Cut, choose
from kernels.lora.rows import UNIT_BYTES
from kernels.lora.table import SlotTable
from kernels.lora.tiles import Tiles

_MAX_SLICES = 3


def apply(
    y_TN: Tensor, x_TK: Tensor, *, slices: Sequence[PackedSlice], tiles: Tiles, table: SlotTable
) -> None:
    """Apply each tile's adapter to a projection's output, in place.

    `slices` are consecutive, and so are their columns, from 0 on. Raises ValueError for what does not fit.
    """
    _check(y_TN, slices, table)
    if not tiles.count:
        return
    cut = _cut(x_TK, tiles, table)
    if tiles.rank:
        shrunk = _shrink(x_TK, slices, tiles, table, cut)
    else:  # only gains and shifts
        shrunk = y_TN.new_empty(1, dtype=torch.float32)
    _expand(y_TN, shrunk, slices, tiles, table, cut)


def ahead(
    x_TK: Tensor,
    bias_N: Tensor | None,
    *,
    slices: Sequence[PackedSlice],
    tiles: Tiles,
    table: SlotTable,
    covers: bool,
) -> Tensor:
    """What adapters without gains and shifts, and the bias, add to a product of the base: `[T, N]`, to which
    that is still to be added. `covers`: the tiles are known to be of all tokens.

    Raises ValueError as `apply` does.
    """
    y_TN = x_TK.new_empty(len(x_TK), slices[-1].stop)
    _check(y_TN, slices, table)
    cut = _cut(x_TK, tiles, table, is_added=False)
    fills = 0 if covers else -(-len(x_TK) // FILLED)
    shrunk = _shrink(x_TK, slices, tiles, table, cut)
    if cut.is_streamed:
        streamed_expand.expand(y_TN, shrunk[0], bias_N, slices=slices, tiles=tiles, table=table, fills=fills)
    else:
        _expand(y_TN, shrunk, slices, tiles, table, cut, is_added=False, bias_N=bias_N, fills=fills)
    return y_TN


def shrink(x_TK: Tensor, *, slices: Sequence[PackedSlice], tiles: Tiles, table: SlotTable) -> Tensor:
    """What each token's lora_a makes of x, in half precision, scaled: float32 `[1, T, L, R]`; of untouched
    slices, and of tokens that are nobody's, whatever was there.

    Raises ValueError as `apply` does.
    """
    check_packed(tuple(slices), slices[-1].stop, most=_MAX_SLICES)
    return prompt_shrink.shrink(x_TK, slices=slices, tiles=tiles, table=table)


def embed(y_TD: Tensor, ids_T: Tensor, *, slice_index: int, tiles: Tiles, table: SlotTable) -> None:
    """Look each tile's tokens up in its adapter's lora_a and expand, adding to y in place."""
    slices = (PackedSlice(slice_index, 0, y_TD.shape[1]),)
    _check(y_TD, slices, table)
    if tiles.count:
        _expand(y_TD, ids_T, slices, tiles, table, _cut(y_TD, tiles, table))


def _cut(x_TK: Tensor, tiles: Tiles, table: SlotTable, *, is_added: bool = True) -> Cut:
    return choose(
        *x_TK.shape,
        block=tiles.block,
        count=tiles.count,
        rank=tiles.rank,
        halves=x_TK.dtype.itemsize == 2,
        fixed_order=table.fixed_order,
        is_added=is_added,
    )


def _shrink(x_TK: Tensor, slices: Sequence[PackedSlice], tiles: Tiles, table: SlotTable, cut: Cut) -> Tensor:
    """Float32 `[C, T, L, R]`, which are still to be summed."""
    if x_TK.stride(1) != 1:
        raise ValueError("x needs a contiguous last dimension")
    if cut.is_pipelined:
        return prompt_shrink.shrink(x_TK, slices=slices, tiles=tiles, table=table)
    columns = len(slices) * -(-tiles.rank // cut.block_r)
    rank_CTLR = x_TK.new_empty((cut.splits, len(x_TK), len(slices), tiles.rank), dtype=torch.float32)
    shrink_kernel[(tiles.count, columns, cut.splits)](
        rank_CTLR,
        x_TK,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        tiles.places,
        tiles.count,
        len(x_TK),
        slices[0].slice,
        table.scaling_SL.shape[1],
        x_TK.shape[1],
        x_TK.stride(0),
        tiles.rank,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        SLICES=len(slices),
        BLOCK_T=tiles.block,
        BLOCK_R=cut.block_r,
        BLOCK_K=cut.block_k,
        K_SPLITS=cut.splits,
        IS_ONE_PASS=cut.is_one_pass,
        PRECISION=_precision(x_TK),
        num_warps=4,
        num_stages=3,
        **overlapping(),
    )
    return rank_CTLR


def _expand(
    y_TN: Tensor,
    source: Tensor,
    slices: Sequence[PackedSlice],
    tiles: Tiles,
    table: SlotTable,
    cut: Cut,
    *,
    is_added: bool = True,
    bias_N: Tensor | None = None,
    fills: int = 0,
) -> None:
    """`source` is what `_shrink` returns, or ids `[T]` int64 whose rows of lora_a to gather. Unless
    `is_added`, y is written with the bias, and `fills` programs see to tokens that are nobody's.
    """
    stops = [packed.stop for packed in slices] + [0] * (_MAX_SLICES - len(slices))
    k_splits = source.shape[0] if source.dim() == 4 else 1
    columns = sum(-((packed.start - packed.stop) // cut.block_n) for packed in slices)
    expand_kernel[(columns, tiles.count + fills)](
        y_TN,
        source,
        bias_N if bias_N is not None else y_TN,
        table.pool,
        table.vectors,
        table.rows_SL6,
        table.scaling_SL,
        tiles.places,
        tiles.count,
        len(y_TN),
        slices[0].slice,
        table.scaling_SL.shape[1],
        *stops,
        y_TN.stride(0),
        tiles.rank,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        VECTOR_UNIT=UNIT_BYTES // 4,
        SLICES=len(slices),
        BLOCK_T=tiles.block,
        BLOCK_R=cut.block_e,
        BLOCK_N=cut.block_n,
        K_SPLITS=k_splits,
        GATHERED=source.dtype == torch.int64,
        HALVES=y_TN.dtype != torch.float32,
        IS_ONE_PASS=tiles.rank <= cut.block_e and not table.fixed_order,
        IS_ADDED=is_added,
        HAS_BIAS=bias_N is not None,
        PRECISION=_precision(y_TN),
        num_warps=4,
        # The splits of a block would not fit in shared memory twice.
        num_stages=2 if k_splits == 1 else 1,
        **overlapping(),
    )


def _check(y_TN: Tensor, slices: Sequence[PackedSlice], table: SlotTable) -> None:
    check_packed(tuple(slices), y_TN.shape[1], most=_MAX_SLICES)
    if y_TN.stride(1) != 1 or y_TN.dtype != table.pool.dtype:
        raise ValueError(f"y needs a contiguous last dimension and the pool's dtype, got {y_TN.dtype}")


def _precision(tensor: Tensor) -> str:
    # tf32 keeps 10 bits, too few to be compared with the CPU.
    return "ieee" if tensor.dtype == torch.float32 else "tf32"
