"""LoRA on experts in Triton, for any base: a shrink and an expand for each of the two products.

Semantics: those of `reference`. Programs have runs of pairs of one slot and one expert, so that what many
tokens share is read once, whatever mix of adapters a batch has; each costs what its own rank costs. Sums are
taken in float32 in an order that does not depend on other tokens' adapters, without atomics; the scaling is
applied in rank space.

Legend: as in `gpu_parts`; T tokens, D hidden, I an expert's width, M runs.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.lora.table import UNIT_BYTES, SlotTable
from kernels.moe.gpu_products import precision
from kernels.moe_lora.gpu_parts import (
    expand,
    factor_ptr,
    load_b,
    load_rank,
    locate_run,
    prefetch_a,
    shrink,
    slice_of,
)
from kernels.moe_lora.gpu_runs import Runs, runs_of, slots_of

__all__ = ["Runs", "apply_down", "apply_gate_up", "check", "runs_of", "slots_of"]

_SHARE_OF_K = 512
_FEW_PAIRS = 1024
_BLOCK_N = 128


def apply_gate_up(
    y_P2I: Tensor, x_TD: Tensor, runs: Runs, *, first_slice: int, table: SlotTable, ready: bool
) -> None:
    """See `reference.apply_gate_up`. `ready`: the runs are not those of the last launch."""
    if runs.rank:
        top_k = runs.routing.experts_TX.shape[1]
        _apply(y_P2I, x_TD, runs, first_slice, 2, pairs_of_row=top_k, table=table, ready=ready)


def apply_down(
    y_PD: Tensor, wide_PI: Tensor, runs: Runs, *, first_slice: int, table: SlotTable, ready: bool
) -> None:
    """See `reference.apply_down`; `ready` as for gate and up."""
    if runs.rank:
        _apply(y_PD, wide_PI, runs, first_slice + 2, 1, pairs_of_row=1, table=table, ready=ready)


def _apply(
    y_PN: Tensor,
    x_K: Tensor,
    runs: Runs,
    first_slice: int,
    slices: int,
    *,
    pairs_of_row: int,
    table: SlotTable,
    ready: bool,
) -> None:
    """y[p] += LoRA of p's slot and expert on x[p // pairs_of_row]. Raises ValueError where shapes differ."""
    pairs = runs.routing.experts_TX.numel()
    check(y_PN, table)
    if len(y_PN) != pairs or len(x_K) * pairs_of_row != pairs:
        raise ValueError(f"shapes do not fit: {y_PN.shape=}, {x_K.shape=}, {pairs=}")
    if not runs.count:
        return
    rank_CPLR = _shrink_pairs(
        x_K, runs, first_slice, slices, pairs_of_row=pairs_of_row, table=table, ready=ready
    )
    columns = y_PN.shape[1] // slices
    _expand_kernel[(runs.count, slices * -(-columns // _BLOCK_N))](
        y_PN,
        rank_CPLR,
        table.pool,
        table.rows_SL6,
        *runs.tensors,
        runs.count,
        pairs,
        first_slice,
        table.scaling_SL.shape[1],
        columns,
        runs.rank,
        BLOCK_R=runs.block_r,
        BLOCK_N=_BLOCK_N,
        HALVES=y_PN.dtype != torch.float32,
        **_constants(runs, slices, len(rank_CPLR), table),
        num_warps=4,
        num_stages=2,
        **overlapping(),
    )


def _shrink_pairs(
    x_K: Tensor,
    runs: Runs,
    first_slice: int,
    slices: int,
    *,
    pairs_of_row: int,
    table: SlotTable,
    ready: bool,
) -> Tensor:
    """Every pair's x, shrunk by the lora_a of its slices: float32 `[C, P, L, R]`, still to be summed over C.
    What no LoRA shrinks is not written.
    """
    check(x_K, table)
    pairs, inputs = runs.routing.experts_TX.numel(), x_K.shape[1]
    splits = _k_splits(inputs)
    rank_CPLR = torch.empty(splits, pairs, slices, runs.rank, dtype=torch.float32, device=x_K.device)
    block_r = 16 if pairs <= _FEW_PAIRS else runs.block_r
    _shrink_kernel[(runs.count, -(-runs.rank // block_r), splits)](
        rank_CPLR,
        x_K,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        *runs.tensors,
        runs.count,
        pairs,
        first_slice,
        table.scaling_SL.shape[1],
        runs.rank,
        IN=inputs,
        PAIRS_OF_ROW=pairs_of_row,
        READY=ready,
        BLOCK_R=block_r,
        BLOCK_K=64 if x_K.dtype == torch.float32 else 128,
        **_constants(runs, slices, splits, table),
        num_warps=4,
        num_stages=4 if block_r == 16 else 3,
        **overlapping(),
    )
    return rank_CPLR


def _constants(runs: Runs, slices: int, splits: int, table: SlotTable) -> dict[str, Any]:
    return {
        "UNIT": UNIT_BYTES // table.pool.element_size(),
        "TOP_K": runs.routing.experts_TX.shape[1],
        "ALONE": runs.arrangement is None,
        "SLICES": slices,
        "SPLITS": splits,
        "BLOCK_B": runs.block,
        "PRECISION": precision(table.pool),
    }


def _k_splits(inputs: int) -> int:
    """Programs that share the inputs of a shrink."""
    return max(1, min(8, inputs // _SHARE_OF_K))


def check(tensor: Tensor, table: SlotTable) -> None:
    if not tensor.is_contiguous() or tensor.dtype != table.pool.dtype:
        raise ValueError(f"x and y must be contiguous and of the pool's dtype, got {tensor.dtype}")


@quick
@triton.jit(do_not_specialize=["runs", "pairs", "first_slice"])
def _shrink_kernel(
    rank_ptr,
    x_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    experts_ptr,
    slots_ptr,
    order_ptr,
    runs_ptr,
    runs,
    pairs,
    first_slice,
    table_slices,
    buffer_rank,
    IN: tl.constexpr,
    PAIRS_OF_ROW: tl.constexpr,
    READY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNIT: tl.constexpr,
    TOP_K: tl.constexpr,
    ALONE: tl.constexpr,
    SLICES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """With READY, routing and runs must be those of a kernel before the one before this."""
    first_rank, split = tl.program_id(1) * BLOCK_R, tl.program_id(2)
    if not READY:
        wait_for_inputs(PDL)
    expert, slot, pair_B, inside_B, _ = locate_run(
        tl.program_id(0), experts_ptr, slots_ptr, order_ptr, runs_ptr, runs, TOP_K, ALONE, BLOCK_B
    )
    if READY:
        if PDL:
            prefetch_a(
                pool_ptr, rows_ptr, slot, expert, first_slice, table_slices, first_rank, split,
                IN, SLICES, SPLITS, UNIT, BLOCK_R, BLOCK_K,
            )  # fmt: skip
        wait_for_inputs(PDL)
    shrink(
        rank_ptr, x_ptr + (pair_B // PAIRS_OF_ROW).to(tl.int64) * IN, pair_B, inside_B,
        pool_ptr, rows_ptr, scaling_ptr, slot, expert, first_slice, table_slices,
        first_rank, split, pairs, buffer_rank,
        IN, SLICES, SPLITS, UNIT, BLOCK_B, BLOCK_R, BLOCK_K, PRECISION,
    )  # fmt: skip


@quick
@triton.jit(do_not_specialize=["runs", "pairs", "first_slice"])
def _expand_kernel(
    y_ptr,
    rank_ptr,
    pool_ptr,
    rows_ptr,
    experts_ptr,
    slots_ptr,
    order_ptr,
    runs_ptr,
    runs,
    pairs,
    first_slice,
    table_slices,
    columns,
    buffer_rank,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HALVES: tl.constexpr,
    UNIT: tl.constexpr,
    TOP_K: tl.constexpr,
    ALONE: tl.constexpr,
    SLICES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[p, slice i] += rank[p, i] @ lora_b[i].T. Routing and runs must be those of a kernel before the one
    before this, since the weights are on their way before the shrunk pairs are there.
    """
    blocks = tl.cdiv(columns, BLOCK_N)
    index, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    expert, slot, pair_B, inside_B, _ = locate_run(
        tl.program_id(0), experts_ptr, slots_ptr, order_ptr, runs_ptr, runs, TOP_K, ALONE, BLOCK_B
    )
    entry, rank = slice_of(rows_ptr, slot, expert, first_slice + index, table_slices)
    n_N = block * BLOCK_N + tl.arange(0, BLOCK_N)
    b_ptr = factor_ptr(pool_ptr, rows_ptr, entry, 1, UNIT)
    b_NR = load_b(b_ptr, n_N, columns, rank, 0, BLOCK_R)
    wait_for_inputs(PDL)
    if rank == 0:
        return
    acc_BN = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    for first in range(0, rank, BLOCK_R):
        if first > 0:
            b_NR = load_b(b_ptr, n_N, columns, rank, first, BLOCK_R)
        rank_BR = load_rank(
            rank_ptr, pair_B, inside_B, rank, first, index, pairs, buffer_rank, SLICES, SPLITS, BLOCK_R
        )
        acc_BN = expand(rank_BR, b_NR, acc_BN, HALVES, PRECISION)
    place_BN = y_ptr + pair_B.to(tl.int64)[:, None] * (SLICES * columns) + (index * columns + n_N)[None, :]
    inside_BN = inside_B[:, None] & (n_N < columns)[None, :]
    y_BN = tl.load(place_BN, mask=inside_BN, other=0.0)
    tl.store(place_BN, (y_BN.to(tl.float32) + acc_BN).to(y_BN.dtype), mask=inside_BN)
