"""A product of one token and its adapter's share, for `beside`.

Legend: as there; N also rows of lora_a, where a program shrinks.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# A checker does not know what becomes of Python in a kernel.

import triton
import triton.language as tl

from kernels.launch import quick, wait_for_inputs
from kernels.lora.programs import arrive, distance, slice_of, wait_for


@quick
@triton.jit(
    do_not_specialize=["tiles", "first_slice", "table_slices", "shrinks", "products", "expands", "outputs"]
)
def vector_kernel(
    parts_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    shrunk_ptr,
    arrived_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    places_ptr,
    tiles,
    first_slice,
    table_slices,
    bucket,
    stop_0,
    stop_1,
    stop_2,
    shrinks,
    products,
    expands,
    outputs,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GRAIN: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNKS: tl.constexpr,
    SLICES: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token, so at most one tile."""
    program = tl.program_id(0)
    turn = program - shrinks
    expand = turn * expands // (products + expands)
    slot = tl.load(places_ptr).to(tl.int64)
    is_idle = tl.load(places_ptr + 2 * tiles) == 0
    first_entry = slot * table_slices + first_slice
    if (turn >= 0) & ((turn + 1) * expands // (products + expands) > expand):
        block, index, start, stop = slice_of(expand, stop_0, stop_1, stop_2, SPAN, SLICES)
        entry = first_entry + index
        rank = tl.load(rows_ptr + entry * 6 + 2).to(tl.int32)
        rank = tl.multiple_of(tl.where(is_idle, 0, rank), 8)
        b_ptr = pool_ptr + tl.multiple_of(tl.load(rows_ptr + entry * 6 + 1) * UNIT, UNIT)
        e_N, r_R = block * SPAN + tl.arange(0, SPAN), tl.arange(0, BLOCK_E)
        inside_N = e_N < stop - start
        wait_for_inputs(PDL)
        if rank > 0:
            wait_for(arrived_ptr, shrinks, PDL)
        acc_N = tl.zeros([SPAN], tl.float32)
        for first in range(0, rank, BLOCK_E):
            inside_R = first + r_R < rank
            b_NR = tl.load(
                b_ptr + e_N[:, None] * rank + (first + r_R)[None, :],
                mask=inside_N[:, None] & inside_R[None, :],
                other=0.0,
            )
            shrunk_R = tl.zeros([BLOCK_E], tl.float32)
            for chunk in tl.static_range(CHUNKS):
                shrunk_R += tl.load(
                    shrunk_ptr + (chunk * SLICES + index) * bucket + first + r_R,
                    mask=inside_R,
                    other=0.0,
                    cache_modifier=".cg",
                )
            acc_N += tl.sum(b_NR.to(tl.float32) * shrunk_R[None, :], 1)
        tl.store(parts_ptr + outputs + start + e_N, acc_N, mask=inside_N)
        return

    k_K = tl.arange(0, BLOCK_K)
    item = turn - expand
    if turn < 0:
        item = program // CHUNKS
    n_N = item * ROWS + tl.arange(0, ROWS)
    begin = 0
    inside_N = n_N < outputs
    row_N = n_N.to(tl.int64) * (IN // GRAIN)
    place_N = n_N
    scaling_N = tl.full([ROWS], 1.0, tl.float32)
    if turn < 0:
        begin = program % CHUNKS * BLOCK_K
        index_N, r_N = n_N // bucket, n_N % bucket
        entry_N = first_entry + index_N
        rank_N = tl.load(rows_ptr + entry_N * 6 + 2, mask=index_N < SLICES, other=0)
        inside_N = (r_N < rank_N) & (not is_idle)
        unit_N = tl.load(rows_ptr + entry_N * 6, mask=inside_N, other=0)
        row_N = (
            distance(pool_ptr, weight_ptr, GRAIN)
            + unit_N * (UNIT // GRAIN)
            + r_N.to(tl.int64) * (IN // GRAIN)
        )
        place_N = program % CHUNKS * SLICES * bucket + n_N
        scaling_N = tl.load(scaling_ptr + entry_N, mask=inside_N, other=0.0)
    row_N *= GRAIN
    weight_NK = weight_ptr + (row_N[:, None] + (begin + k_K)[None, :])
    inside_K = begin + k_K < IN
    first_NK = tl.load(weight_NK, mask=inside_N[:, None] & inside_K[None, :], other=0.0)
    wait_for_inputs(PDL)
    x_K = tl.load(x_ptr + begin + k_K, mask=inside_K, other=0.0).to(tl.float32)
    acc_NK = first_NK.to(tl.float32) * x_K[None, :]
    if turn < 0:
        tl.store(shrunk_ptr + place_N, tl.sum(acc_NK, 1) * scaling_N, mask=inside_N)
        arrive(arrived_ptr)
        return
    for more in tl.static_range(BLOCK_K, IN, BLOCK_K):
        inside_K = more + k_K < IN
        w_NK = tl.load(weight_NK + more, mask=inside_N[:, None] & inside_K[None, :], other=0.0)
        x_K = tl.load(x_ptr + more + k_K, mask=inside_K, other=0.0).to(tl.float32)
        acc_NK += w_NK.to(tl.float32) * x_K[None, :]
    y_N = tl.sum(acc_NK, 1)
    if HAS_BIAS:
        y_N += tl.load(bias_ptr + n_N, mask=inside_N, other=0.0).to(tl.float32)
    tl.store(parts_ptr + n_N, y_N, mask=inside_N)
