"""Each token's experts added up, with lora_b of down where an adapter's experts share it: what was shrunk is
added up in rank space, and expanded once.

Legend: T tokens, X experts of a token, P pairs, D hidden, R rank.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.lora.table import UNIT_BYTES, SlotTable
from kernels.moe.gpu_products import precision
from kernels.moe.routing import Routing
from kernels.moe_lora.gpu_parts import expand, load_b

_TOKENS, _COLUMNS = 16, 128


def add_up(
    y_PD: Tensor, shrunk_PR: Tensor, routing: Routing, slots_T: Tensor, *, first_slice: int, table: SlotTable
) -> Tensor:
    """Each token's pairs times their weights, `[T, D]`; pairs of expert -1 are not read. `first_slice` is
    down of the first expert; of those that share its lora_b, y lacks LoRA, which `shrunk` `[P, R]` has.
    """
    tokens, top_k = routing.experts_TX.shape
    hidden = y_PD.shape[1]
    out_TD = y_PD.new_empty(tokens, hidden)
    _sum_kernel[(-(-hidden // _COLUMNS), -(-tokens // _TOKENS))](
        out_TD,
        y_PD,
        shrunk_PR,
        table.pool,
        table.rows_SL6,
        routing.experts_TX,
        routing.weights_TX,
        slots_T,
        tokens,
        first_slice,
        table.scaling_SL.shape[1],
        HIDDEN=hidden,
        TOP_K=top_k,
        BLOCK_T=_TOKENS,
        BLOCK_D=_COLUMNS,
        BLOCK_R=shrunk_PR.shape[-1],
        UNIT=UNIT_BYTES // table.pool.element_size(),
        HALVES=y_PD.dtype != torch.float32,
        PRECISION=precision(table.pool),
        num_warps=4,
        **overlapping(),
    )
    return out_TD


@triton.jit
def _b_of(rows_ptr, entry):
    return tl.load(rows_ptr + entry * 6 + 1), tl.load(rows_ptr + entry * 6 + 2)


@quick
@triton.jit(do_not_specialize=["tokens", "first_slice"])
def _sum_kernel(
    out_ptr,
    y_ptr,
    shrunk_ptr,
    pool_ptr,
    rows_ptr,
    experts_ptr,
    weights_ptr,
    slots_ptr,
    tokens,
    first_slice,
    table_slices,
    HIDDEN: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    UNIT: tl.constexpr,
    HALVES: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    t_T = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    d_D, r_R = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_R)
    inside_T = t_T < tokens
    slot_T = tl.load(slots_ptr + t_T, mask=inside_T, other=-1)
    entry_T = tl.maximum(slot_T, 0).to(tl.int64) * table_slices + first_slice
    b_T, rank_T = _b_of(rows_ptr, entry_T)
    other_T, other_rank_T = _b_of(rows_ptr, entry_T + 3)
    shares_T = (slot_T >= 0) & (rank_T > 0) & (b_T == other_T) & (rank_T == other_rank_T)
    wait_for_inputs(PDL)
    acc_TD = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    sum_TR = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    for x in tl.static_range(TOP_K):
        pair_T = t_T.to(tl.int64) * TOP_K + x
        expert_T = tl.load(experts_ptr + pair_T, mask=inside_T, other=-1)
        is_any_T = expert_T >= 0
        share_T = tl.load(weights_ptr + pair_T, mask=is_any_T, other=0.0)
        inside_TD = is_any_T[:, None] & (d_D < HIDDEN)[None, :]
        y_TD = tl.load(y_ptr + (pair_T * HIDDEN)[:, None] + d_D[None, :], mask=inside_TD, other=0.0)
        acc_TD += share_T[:, None] * y_TD.to(tl.float32)
        mine_T, mine_rank_T = _b_of(rows_ptr, entry_T + 3 * tl.maximum(expert_T, 0))
        is_shared_T = is_any_T & shares_T & (mine_T == b_T) & (mine_rank_T == rank_T)
        shrunk_TR = shrunk_ptr + (pair_T * BLOCK_R)[:, None] + r_R[None, :]
        sum_TR += share_T[:, None] * tl.load(shrunk_TR, mask=is_shared_T[:, None], other=0.0)
    slot = tl.max(tl.where(shares_T, slot_T, -1), 0)
    while slot >= 0:
        unit, rank = _b_of(rows_ptr, slot.to(tl.int64) * table_slices + first_slice)
        b_ptr = pool_ptr + tl.multiple_of(unit * UNIT, UNIT)
        b_DR = load_b(b_ptr, d_D, HIDDEN, tl.multiple_of(rank.to(tl.int32), 8), 0, BLOCK_R)
        acc_TD = expand(tl.where((slot_T == slot)[:, None], sum_TR, 0.0), b_DR, acc_TD, HALVES, PRECISION)
        slot = tl.max(tl.where(shares_T & (slot_T < slot), slot_T, -1), 0)
    inside_TD = inside_T[:, None] & (d_D < HIDDEN)[None, :]
    place_TD = out_ptr + (t_T.to(tl.int64) * HIDDEN)[:, None] + d_D[None, :]
    tl.store(place_TD, acc_TD.to(out_ptr.dtype.element_ty), mask=inside_TD)
