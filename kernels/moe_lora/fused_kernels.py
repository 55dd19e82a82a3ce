"""A product of experts with its LoRA, for `fused`.

A tile has pairs of one expert and of some adapter slots, which are its first, second and so on by their
numbers. Rows of lora_a of all its slots, one after another, are multiplied like rows of a weight, for which
programs with the lowest numbers are; the others add lora_b's share of a group of its slots as if those were
one adapter of a larger rank, each pair's row being zero outside its own slot.

Where a slot's experts share lora_a of gate and of up, programs before all others shrink each token once, as
if tokens were tiles; where they share lora_b of down, nothing is expanded here.

Legend: as in `fused_parts`; T tokens, X experts of a token, D hidden.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# A checker does not know what becomes of Python in a kernel.

import triton
import triton.language as tl

from kernels.launch import quick, wait_for_inputs
from kernels.lora.programs import arrive, wait_for
from kernels.moe.gpu_products import halves, prefetch, product, row_of, silu_times, store_columns
from kernels.moe_lora.fused_parts import (
    add_lora,
    find_tile,
    load_b,
    load_shrunk,
    rows_of_a,
    split_turns,
    store_shrunk,
)

_NUMBERS = ["tiles", "pairs", "token_tiles", "groups", "most_met", "first_slice", "outputs"]


@quick
@triton.jit(do_not_specialize=_NUMBERS)
def product_kernel(
    y_ptr,
    shrunk_ptr,
    x_ptr,
    weight_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    order_ptr,
    tiles_ptr,
    turns_ptr,
    met_ptr,
    tiles,
    pairs,
    token_tiles,
    groups,
    most_met,
    first_slice,
    table_slices,
    outputs,
    IN: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_DOWN: tl.constexpr,
    AHEAD: tl.constexpr,
    EARLY: tl.constexpr,
    SHARES: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    UNIT: tl.constexpr,
    HALVES: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Gate and up, activated: y[p] = silu(gate) * up of weight[e] @ x[t] with LoRA. Down: weight[e] @ x[p]
    with LoRA; its routing and order must be those of a kernel before the one before this.
    """
    SLICES: tl.constexpr = 1 if IS_DOWN else 2
    program, shrinking = tl.program_id(0), groups * (tiles + token_tiles)
    is_shrinking = program < shrinking
    program -= tl.where(is_shrinking, 0, shrinking)
    extra = tl.where(is_shrinking, token_tiles, 0)
    turn, tile = program // (tiles + extra), program % (tiles + extra) - extra
    block = tl.where(is_shrinking, -1, turn)
    row_N, n_N = row_of(tl.maximum(block, 0), outputs, ROWS, not IS_DOWN)
    if not IS_DOWN:
        wait_for_inputs(PDL)
    expert, place, count, met_ptr = find_tile(
        tile, tiles_ptr, met_ptr, tiles, token_tiles, pairs, most_met, TOP_K, SHARES, BLOCK_B
    )
    slots = tl.where(count > 0, tl.load(met_ptr), 0)
    parts = tl.cdiv(slots * (SLICES * BLOCK_R), ROWS)
    arrived_ptr = tiles_ptr + (4 if IS_DOWN else 3) * tiles + tl.maximum(tile, 0)
    is_shrunk = False
    if EARLY:
        # But for the first programs, what was shrunk is there before it is wanted.
        is_shrunk = tl.atomic_add(arrived_ptr, 0, sem="acquire") >= parts
    b_B = tl.arange(0, BLOCK_B)
    inside_B = b_B < count
    # A place beyond the last has the last pair, so that x needs no mask.
    place_B = place + tl.minimum(b_B, count - 1)
    pair_B = tl.load(order_ptr + place_B, mask=(count > 0) & (tile >= 0), other=0)
    turn_B = tl.load(turns_ptr + place_B, mask=inside_B, other=-1)
    shrunk_B, expanded_B, row_B = turn_B, turn_B, place + b_B
    all_arrived_ptr = tiles_ptr + 5 * tiles
    if SHARES:
        own_B, turn_B = split_turns(turn_B, IS_DOWN)
        row_B = pair_B.to(tl.int64)
        if IS_DOWN:
            # What is shared is shrunk, but expanded by whoever adds up a token's experts.
            shrunk_B, expanded_B = turn_B, own_B
            slots = tl.where(is_shrinking | (tl.max(own_B, 0) >= 0), slots, 0)
        else:
            shrunk_B, expanded_B = own_B, turn_B
            pair_B = tl.where(tile < 0, (place_B - pairs).to(tl.int32) * TOP_K, pair_B)
            row_B = tl.where((own_B < 0) | (tile < 0), pairs + pair_B // TOP_K, pair_B).to(tl.int64)
    expert_ptr = weight_ptr + expert.to(tl.int64) * outputs * IN
    weight_N = expert_ptr + row_N * IN
    if PDL and (count > 0) & (block >= 0):
        prefetch(weight_N)
    x_B = x_ptr + (pair_B if IS_DOWN else pair_B // TOP_K).to(tl.int64) * IN
    of_tile = (pool_ptr, rows_ptr, met_ptr, slots, expert, first_slice, table_slices)
    if block < 0:
        if IS_DOWN:
            if PDL and turn < parts:
                a_N, _, _ = rows_of_a(of_tile, turn, scaling_ptr, expert_ptr, IN, SLICES, ROWS, BLOCK_R, UNIT)
                prefetch(a_N)
            wait_for_inputs(PDL)
        for group in tl.range(turn, parts, groups, num_stages=1):
            a_N, scaling_N, is_there_N = rows_of_a(
                of_tile, group, scaling_ptr, expert_ptr, IN, SLICES, ROWS, BLOCK_R, UNIT
            )
            if SHARES and not IS_DOWN:
                turn_N = (group * ROWS + tl.arange(0, ROWS)) // (SLICES * BLOCK_R)
                is_there_N &= tl.max((turn_N[:, None] == shrunk_B[None, :]).to(tl.int32), 1) > 0
            acc_NB = tl.zeros([ROWS, BLOCK_B], tl.float32)
            if tl.max(is_there_N.to(tl.int32), 0) > 0:
                acc_NB = product(a_N, x_B, IN, ROWS, BLOCK_B, BLOCK_K, PRECISION)
            acc_NB = tl.where(is_there_N[:, None], acc_NB * scaling_N[:, None], 0.0)
            store_shrunk(shrunk_ptr, acc_NB, group, row_B, shrunk_B, SLICES, ROWS, BLOCK_R)
            if tile >= 0:
                arrive(arrived_ptr)
        if SHARES and not IS_DOWN and tile < 0:
            arrive(all_arrived_ptr)
    elif IS_DOWN:
        b_NQ = tl.zeros([ROWS, BLOCK_S * BLOCK_R], pool_ptr.dtype.element_ty)
        if AHEAD:
            b_NQ = load_b(of_tile, 0, 0, n_N, outputs, ROWS, BLOCK_S, BLOCK_R, UNIT)
        wait_for_inputs(PDL)
        shrunk_RB = tl.zeros([BLOCK_R, BLOCK_B], tl.float32)
        if EARLY:
            shrunk_RB = load_shrunk(shrunk_ptr, row_B, expanded_B, 0, is_shrunk, SLICES, BLOCK_R)
        if count > 0:
            acc_NB = product(weight_N, x_B, IN, ROWS, BLOCK_B, BLOCK_K, PRECISION)
            if not EARLY or not is_shrunk:
                wait_for(arrived_ptr, parts, PDL)
                shrunk_RB = load_shrunk(shrunk_ptr, row_B, expanded_B, 0, True, SLICES, BLOCK_R)
            acc_NB, _ = add_lora(
                acc_NB, acc_NB, b_NQ, b_NQ, shrunk_RB, shrunk_RB, of_tile, expanded_B, n_N, outputs,
                False, AHEAD, ROWS, BLOCK_B, BLOCK_S, BLOCK_R, UNIT, HALVES, PRECISION,
            )  # fmt: skip
            store_columns(y_ptr, acc_NB, n_N, outputs, pair_B, inside_B, ALIGNED)
    else:
        i_N = block * (ROWS // 2) + tl.arange(0, ROWS // 2)
        gate_NQ = tl.zeros([ROWS // 2, BLOCK_S * BLOCK_R], pool_ptr.dtype.element_ty)
        up_NQ = gate_NQ
        if AHEAD:
            gate_NQ = load_b(of_tile, 0, 0, i_N, outputs // 2, ROWS // 2, BLOCK_S, BLOCK_R, UNIT)
            up_NQ = load_b(of_tile, 0, 1, i_N, outputs // 2, ROWS // 2, BLOCK_S, BLOCK_R, UNIT)
        gate_RB = tl.zeros([BLOCK_R, BLOCK_B], tl.float32)
        up_RB = gate_RB
        if EARLY:
            gate_RB = load_shrunk(shrunk_ptr, row_B, expanded_B, 0, is_shrunk, SLICES, BLOCK_R)
            up_RB = load_shrunk(shrunk_ptr, row_B, expanded_B, 1, is_shrunk, SLICES, BLOCK_R)
        if count > 0:
            acc_NB = product(weight_N, x_B, IN, ROWS, BLOCK_B, BLOCK_K, PRECISION)
            gate_NB, up_NB = halves(acc_NB, ROWS, BLOCK_B)
            if not EARLY or not is_shrunk:
                wait_for(arrived_ptr, parts, PDL)
                if SHARES:
                    wait_for(all_arrived_ptr, token_tiles * groups, PDL)
                gate_RB = load_shrunk(shrunk_ptr, row_B, expanded_B, 0, True, SLICES, BLOCK_R)
                up_RB = load_shrunk(shrunk_ptr, row_B, expanded_B, 1, True, SLICES, BLOCK_R)
            gate_NB, up_NB = add_lora(
                gate_NB, up_NB, gate_NQ, up_NQ, gate_RB, up_RB, of_tile, expanded_B, i_N, outputs // 2,
                True, AHEAD, ROWS // 2, BLOCK_B, BLOCK_S, BLOCK_R, UNIT, HALVES, PRECISION,
            )  # fmt: skip
            store_columns(y_ptr, silu_times(gate_NB, up_NB), i_N, outputs // 2, pair_B, inside_B, ALIGNED)
