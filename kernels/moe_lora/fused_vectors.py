"""Experts and their LoRA for very few tokens, in one launch more than the base's own.

Semantics: those of `fused`; as in `kernels.moe.gpu_vectors`, each pair is by itself. The first launch also
shrinks; the second expands, activates and shrinks its own results for down; the third expands those and adds
up a token's experts.

Legend: as in `kernels.moe.gpu_vectors`; R rank, C blocks of an expert's width.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.lora.table import UNIT_BYTES, SlotTable
from kernels.moe.gpu_products import silu_times
from kernels.moe.gpu_vectors import (
    GATE_UP,
    check,
    dot_rows,
    load_rows,
    multiply_rows,
    rows_of_token,
    store_sum,
)
from kernels.moe.interface import ExpertWeights
from kernels.moe_lora.gpu import Runs
from kernels.moe_lora.gpu_parts import factor_ptr, load_b, slice_of

MIDDLE = {"BLOCK_I": 128, "num_warps": 4}
DOWN = {"ROWS": 4, "BLOCK_K": 256, "num_warps": 4}


def experts(
    x_TD: Tensor, weights: ExpertWeights, runs: Runs, *, first_slice: int, table: SlotTable
) -> Tensor:
    """Of few tokens, `[T, D]`."""
    y_P2I, rank_P2R = gate_up(x_TD, weights.gate_up_E2ID, runs, first_slice=first_slice, table=table)
    wide_PI, rank_CPR = middle(y_P2I, rank_P2R, runs, first_slice=first_slice, table=table)
    return down(wide_PI, weights.down_EDI, rank_CPR, runs, first_slice=first_slice, table=table)


def gate_up(
    x_TD: Tensor, weight_E2ID: Tensor, runs: Runs, *, first_slice: int, table: SlotTable
) -> tuple[Tensor, Tensor]:
    """y `[P, 2 I]`, and the shrunk pairs of both halves, `[P, 2, R]`."""
    outputs, inputs = weight_E2ID.shape[1:]
    tokens, top_k = runs.routing.experts_TX.shape
    y_P2I = x_TD.new_empty(tokens * top_k, outputs)
    rank_P2R = x_TD.new_empty((tokens * top_k, 2, runs.rank), dtype=torch.float32)
    check(x_TD, weight_E2ID, runs.routing)
    blocks_of_a = -(-runs.rank // GATE_UP["ROWS"])
    _gate_up_kernel[(2 * blocks_of_a + -(-outputs // GATE_UP["ROWS"]), tokens * top_k)](
        y_P2I,
        rank_P2R,
        x_TD,
        weight_E2ID,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        runs.routing.experts_TX,
        runs.slots_T,
        first_slice,
        table.scaling_SL.shape[1],
        runs.rank,
        blocks_of_a,
        outputs,
        IN=inputs,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        TOP_K=top_k,
        **GATE_UP,
        **overlapping(),
    )
    return y_P2I, rank_P2R


def middle(
    y_P2I: Tensor, rank_P2R: Tensor, runs: Runs, *, first_slice: int, table: SlotTable
) -> tuple[Tensor, Tensor]:
    """The activation `[P, I]`, and what it is shrunk to, of each block of columns."""
    pairs, wide = len(y_P2I), y_P2I.shape[1] // 2
    blocks = -(-wide // MIDDLE["BLOCK_I"])
    wide_PI = y_P2I.new_empty(pairs, wide)
    rank_CPR = rank_P2R.new_empty(blocks, pairs, runs.rank)
    _middle_kernel[(blocks, pairs)](
        wide_PI,
        rank_CPR,
        y_P2I,
        rank_P2R,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        runs.routing.experts_TX,
        runs.slots_T,
        pairs,
        first_slice,
        table.scaling_SL.shape[1],
        runs.rank,
        WIDE=wide,
        BLOCK_R=runs.block_r,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        TOP_K=runs.routing.experts_TX.shape[1],
        **MIDDLE,
        **overlapping(),
    )
    return wide_PI, rank_CPR


def down(
    wide_PI: Tensor, weight_EDI: Tensor, rank_CPR: Tensor, runs: Runs, *, first_slice: int, table: SlotTable
) -> Tensor:
    """Each token's pairs times their weights, `[T, D]`."""
    outputs, inputs = weight_EDI.shape[1:]
    tokens, top_k = runs.routing.experts_TX.shape
    out_TD = wide_PI.new_empty(tokens, outputs)
    check(wide_PI, weight_EDI, runs.routing)
    _down_kernel[(-(-outputs // DOWN["ROWS"]), tokens)](
        out_TD,
        wide_PI,
        weight_EDI,
        rank_CPR,
        table.pool,
        table.rows_SL6,
        runs.routing.experts_TX,
        runs.slots_T,
        runs.routing.weights_TX,
        tokens * top_k,
        first_slice + 2,
        table.scaling_SL.shape[1],
        runs.rank,
        outputs,
        IN=inputs,
        SPLITS=len(rank_CPR),
        BLOCK_R=runs.block_r,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        TOP_K=top_k,
        BLOCK_X=1 << (top_k - 1).bit_length(),
        **DOWN,
        **overlapping(),
    )
    return out_TD


@quick
@triton.jit(do_not_specialize=["first_slice", "blocks_of_a", "outputs"])
def _gate_up_kernel(
    y_ptr,
    rank_ptr,
    x_ptr,
    weight_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    experts_ptr,
    slots_ptr,
    first_slice,
    table_slices,
    buffer_rank,
    blocks_of_a,
    outputs,
    IN: tl.constexpr,
    UNIT: tl.constexpr,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Blocks of lora_a of gate and of up come first, then those of the weight."""
    block, pair = tl.program_id(0), tl.program_id(1)
    wait_for_inputs(PDL)
    expert = tl.load(experts_ptr + pair)
    if expert < 0:
        return
    token = pair // TOP_K
    x_1 = x_ptr + token * IN + tl.arange(0, 1)
    if block < 2 * blocks_of_a:
        index = block // blocks_of_a
        r_N = block % blocks_of_a * ROWS + tl.arange(0, ROWS)
        entry, rank = slice_of(
            rows_ptr, tl.load(slots_ptr + token), expert, first_slice + index, table_slices
        )
        if block % blocks_of_a * ROWS < rank:
            a_N = factor_ptr(pool_ptr, rows_ptr, entry, 0, UNIT) + r_N * IN
            rank_N = dot_rows(a_N, x_1, r_N < rank, IN, ROWS, BLOCK_K) * tl.load(scaling_ptr + entry)
            tl.store(rank_ptr + (pair * 2 + index) * buffer_rank + r_N, rank_N, mask=r_N < rank)
    else:
        n_N = (block - 2 * blocks_of_a) * ROWS + tl.arange(0, ROWS)
        weight_N = weight_ptr + expert.to(tl.int64) * outputs * IN + n_N * IN
        y_N = dot_rows(weight_N, x_1, n_N < outputs, IN, ROWS, BLOCK_K)
        tl.store(y_ptr + pair * outputs + n_N, y_N.to(y_ptr.dtype.element_ty), mask=n_N < outputs)


@quick
@triton.jit(do_not_specialize=["pairs", "first_slice"])
def _middle_kernel(
    wide_ptr,
    down_rank_ptr,
    y_ptr,
    rank_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    experts_ptr,
    slots_ptr,
    pairs,
    first_slice,
    table_slices,
    buffer_rank,
    WIDE: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
    UNIT: tl.constexpr,
    TOP_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """wide = silu(gate + its LoRA) * (up + its LoRA), and wide @ lora_a of down: a block of both a program.
    Routing and slots must be those of a kernel before the one before this.
    """
    block, pair = tl.program_id(0), tl.program_id(1)
    chosen, slot = tl.load(experts_ptr + pair), tl.load(slots_ptr + pair // TOP_K)
    expert = tl.maximum(chosen, 0)
    gate, gate_rank = slice_of(rows_ptr, slot, expert, first_slice, table_slices)
    up, up_rank = slice_of(rows_ptr, slot, expert, first_slice + 1, table_slices)
    down, down_rank = slice_of(rows_ptr, slot, expert, first_slice + 2, table_slices)
    i_I, r_R = block * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_R)
    # Weights are on their way before the product is there.
    gate_IR = load_b(factor_ptr(pool_ptr, rows_ptr, gate, 1, UNIT), i_I, WIDE, gate_rank, 0, BLOCK_R)
    up_IR = load_b(factor_ptr(pool_ptr, rows_ptr, up, 1, UNIT), i_I, WIDE, up_rank, 0, BLOCK_R)
    down_RI = factor_ptr(pool_ptr, rows_ptr, down, 0, UNIT) + r_R[:, None] * WIDE + i_I[None, :]
    down_RI = tl.load(down_RI, mask=(r_R < down_rank)[:, None] & (i_I < WIDE)[None, :], other=0.0)
    wait_for_inputs(PDL)
    if chosen < 0:
        return
    rank_R = rank_ptr + pair * 2 * buffer_rank + r_R
    gate_R = tl.load(rank_R, mask=r_R < gate_rank, other=0.0)
    up_R = tl.load(rank_R + buffer_rank, mask=r_R < up_rank, other=0.0)
    y_I = y_ptr + pair * (2 * WIDE) + i_I
    gate_I = tl.load(y_I, mask=i_I < WIDE, other=0.0).to(tl.float32)
    up_I = tl.load(y_I + WIDE, mask=i_I < WIDE, other=0.0).to(tl.float32)
    gate_I += tl.sum(gate_IR.to(tl.float32) * gate_R[None, :], 1)
    up_I += tl.sum(up_IR.to(tl.float32) * up_R[None, :], 1)
    wide_I = silu_times(gate_I, up_I).to(wide_ptr.dtype.element_ty)
    tl.store(wide_ptr + pair * WIDE + i_I, wide_I, mask=i_I < WIDE)
    sum_R = tl.sum(down_RI.to(tl.float32) * wide_I.to(tl.float32)[None, :], 1)
    place_R = down_rank_ptr + (block * pairs + pair) * buffer_rank + r_R
    tl.store(place_R, sum_R * tl.load(scaling_ptr + down), mask=r_R < down_rank)


@quick
@triton.jit(do_not_specialize=["pairs", "first_slice", "outputs"])
def _down_kernel(
    out_ptr,
    wide_ptr,
    weight_ptr,
    rank_ptr,
    pool_ptr,
    rows_ptr,
    experts_ptr,
    slots_ptr,
    weights_ptr,
    pairs,
    first_slice,
    table_slices,
    buffer_rank,
    outputs,
    IN: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    UNIT: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Routing and slots must be those of a kernel before the one before this, whose results the first weights
    need not wait for.
    """
    block, token = tl.program_id(0), tl.program_id(1)
    pair_J, expert_J, row_J, inside_J = rows_of_token(
        token, block, outputs, experts_ptr, TOP_K, BLOCK_X, ROWS
    )
    weight_J = weight_ptr + expert_J.to(tl.int64) * outputs * IN + row_J * IN
    first_JK = load_rows(weight_J, inside_J, 0, IN, BLOCK_K)
    slot = tl.load(slots_ptr + token)
    entry_J = tl.maximum(slot, 0).to(tl.int64) * table_slices + first_slice + 3 * expert_J
    rank_J = tl.load(rows_ptr + entry_J * 6 + 2).to(tl.int32)
    rank_J = tl.where(inside_J & (slot >= 0), rank_J, 0)
    r_R = tl.arange(0, BLOCK_R)
    inside_JR = r_R[None, :] < rank_J[:, None]
    b_J = pool_ptr + tl.multiple_of(tl.load(rows_ptr + entry_J * 6 + 1) * UNIT, [UNIT]) + row_J * rank_J
    b_JR = tl.load(b_J[:, None] + r_R[None, :], mask=inside_JR, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    y_J = multiply_rows(weight_J, first_JK, wide_ptr + pair_J * IN, inside_J, IN, BLOCK_X * ROWS, BLOCK_K)
    part_JR = rank_ptr + (pair_J * buffer_rank)[:, None] + r_R[None, :]
    rank_JR = tl.load(part_JR, mask=inside_JR, other=0.0)
    for split in tl.static_range(1, SPLITS):
        rank_JR += tl.load(part_JR + split * pairs * buffer_rank, mask=inside_JR, other=0.0)
    y_J += tl.sum(b_JR * rank_JR, 1)
    store_sum(out_ptr, y_J, pair_J, inside_J, weights_ptr, token, block, outputs, BLOCK_X, ROWS)
