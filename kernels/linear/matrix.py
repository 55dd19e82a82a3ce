"""The kernel of `small_batch` for several tokens, with tensor cores.

Legend: as there; L lines of 128 bytes.
"""

# pyright: reportGeneralTypeIssues=false
# A checker does not know what `static_range` is.

import triton
import triton.language as tl

from kernels.launch import quick, wait_for_inputs
from kernels.linear.gating import gate_and_up, silu_mul


@quick
@triton.jit(do_not_specialize=["tokens"])
def matrix_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    parts_ptr,
    arrived_ptr,
    tokens,
    columns,
    stride_x_t,
    stride_y_t,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    MORE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    SPLITS: tl.constexpr,
    IS_SUMMED: tl.constexpr,
    IS_GATED: tl.constexpr,
    PREFETCH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Weights stand where tensor cores want the larger operand: the product is that of y transposed. A
    program computes ROWS + MORE of them, powers of two, y having `columns`.
    """
    block, split = tl.program_id(0), tl.program_id(1)
    first_row = block * (ROWS + MORE)
    t_T, k_K = tl.arange(0, TOKENS), tl.arange(0, BLOCK_K)
    inside_T = t_T < tokens
    row_N = _rows(first_row, columns, ROWS, IS_GATED)
    weight_NK = weight_ptr + row_N.to(tl.int64)[:, None] * IN + k_K[None, :]
    x_KT = x_ptr + t_T.to(tl.int64)[None, :] * stride_x_t + k_K[:, None]
    share = tl.cdiv(tl.cdiv(IN, SPLITS), BLOCK_K) * BLOCK_K
    begin = split * share
    end = tl.minimum(begin + share, IN)
    acc_NT = tl.zeros([ROWS, TOKENS], tl.float32)
    if MORE > 0:
        more_N = _rows(first_row + ROWS, columns, MORE, IS_GATED)
        more_NK = weight_ptr + more_N.to(tl.int64)[:, None] * IN + k_K[None, :]
        more_NT = tl.zeros([MORE, TOKENS], tl.float32)
    if PDL and PREFETCH > 0:
        line_L = begin + tl.arange(0, PREFETCH // 64) * 64
        _prefetch(weight_ptr + row_N.to(tl.int64)[:, None] * IN + line_L[None, :], 1)
        if MORE > 0:
            _prefetch(weight_ptr + more_N.to(tl.int64)[:, None] * IN + line_L[None, :], 1)
    wait_for_inputs(PDL)
    for first in range(begin, end, BLOCK_K):
        if IN % BLOCK_K == 0:
            a_KT = tl.load(x_KT + first, mask=inside_T[None, :], other=0.0)
        else:
            a_KT = tl.load(x_KT + first, mask=inside_T[None, :] & (first + k_K < IN)[:, None], other=0.0)
        acc_NT = tl.dot(_load(weight_NK, first, k_K, IN, BLOCK_K), a_KT, acc_NT)
        if MORE > 0:
            more_NT = tl.dot(_load(more_NK, first, k_K, IN, BLOCK_K), a_KT, more_NT)
        if PDL and BLOCK_K == 64:
            # Memory gives two lines in a row for little more than one: when the first of a pair is fetched to
            # shared memory, the second is to L2.
            second = first + STAGES * BLOCK_K
            wanted = ((first // BLOCK_K + STAGES) % 2 == 1) & (second < end)
            _prefetch(weight_ptr + row_N.to(tl.int64) * IN + second, wanted.to(tl.int32))
            if MORE > 0:
                _prefetch(weight_ptr + more_N.to(tl.int64) * IN + second, wanted.to(tl.int32))
    if SPLITS > 1 or not IS_SUMMED:
        n_N = first_row + tl.arange(0, ROWS)
        inside_NT = (n_N < columns)[:, None] & inside_T[None, :]
        part_NT = parts_ptr + t_T.to(tl.int64)[None, :] * columns + n_N[:, None]
        stride = tokens.to(tl.int64) * columns
        tl.store(part_NT + split * stride, acc_NT, mask=inside_NT)
    if not IS_SUMMED:
        return
    if SPLITS > 1:
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr + block, 1, sem="acq_rel") < SPLITS - 1:
            return
        tl.store(arrived_ptr + block, 0)
        acc_NT = tl.zeros([ROWS, TOKENS], tl.float32)
        for part in tl.static_range(SPLITS):
            # From L2, where the others' parts are.
            acc_NT += tl.load(part_NT + part * stride, mask=inside_NT, other=0.0, cache_modifier=".cg")
    y_TN = y_ptr, stride_y_t, tokens, columns
    _finish(y_TN, bias_ptr, acc_NT, row_N, first_row, ROWS, TOKENS, IS_GATED, HAS_BIAS)
    if MORE > 0:
        _finish(y_TN, bias_ptr, more_NT, more_N, first_row + ROWS, MORE, TOKENS, IS_GATED, HAS_BIAS)


@triton.jit
def _rows(first_row, columns, ROWS: tl.constexpr, IS_GATED: tl.constexpr):
    """Rows of the weights. Beyond the last they are the last again, which costs no mask."""
    r_N = tl.arange(0, ROWS)
    return (
        gate_and_up(first_row // 2, columns, ROWS) if IS_GATED else tl.minimum(first_row + r_N, columns - 1)
    )


@triton.jit
def _load(weight_NK, first, k_K, IN: tl.constexpr, BLOCK_K: tl.constexpr):
    inside_K = first + k_K < IN
    ptr_NK = weight_NK + first
    return tl.load(ptr_NK) if IN % BLOCK_K == 0 else tl.load(ptr_NK, mask=inside_K[None, :], other=0.0)


@triton.jit
def _prefetch(line, wanted):
    """Lines that addresses are in, to L2, unless `wanted` is zero."""
    tl.inline_asm_elementwise(
        "{.reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0;}",
        "=r,l,r",
        [line.to(tl.int64), wanted],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _finish(
    y_TN,
    bias_ptr,
    product_NT,
    row_N,
    first_row,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Write what the rows' products come to; `y_TN` are its address, stride, tokens and columns."""
    y_ptr, stride_y_t, tokens, columns = y_TN
    if HAS_BIAS:
        product_NT += tl.load(bias_ptr + row_N).to(tl.float32)[:, None]
    if IS_GATED:
        out_NT = silu_mul(product_NT, y_ptr.dtype.element_ty, ROWS, TOKENS)
        n_N = first_row // 2 + tl.arange(0, ROWS // 2)
    else:
        out_NT = product_NT
        n_N = first_row + tl.arange(0, ROWS)
    t_T = tl.arange(0, TOKENS)
    y_NT = y_ptr + t_T.to(tl.int64)[None, :] * stride_y_t + n_N[:, None]
    inside_NT = (n_N < columns)[:, None] & (t_T < tokens)[None, :]
    tl.store(y_NT, out_NT.to(y_ptr.dtype.element_ty), mask=inside_NT)
