"""Linear layers of the deterministic mode: an output's bits do not depend on the other tokens.

Semantics: `y = x @ weight.T + bias`. One tile serves any number of tokens, inputs are cut into segments by
the weight's shape alone, each is summed by itself in order and then the segments are, in float32. Few tokens
give each segment a program of its own, many give one program all of them: the sums are the same.

Legend: T tokens, K in features, N out features, C segments.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs

_ROWS = 128
_TOKENS = 64
_ENOUGH_PROGRAMS = 256
_SHORTEST_SEGMENT = 512
_COLUMNS_OF_A_SUM = 1024


def multiply(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, out_TN: Tensor | None = None) -> Tensor:
    """Shapes and meaning as in `fused.reference.linear`. Raises ValueError for what does not fit."""
    tokens, (outputs, inputs) = len(x_TK), weight_NK.shape
    if out_TN is None:
        out_TN = x_TK.new_empty(tokens, outputs)
    if out_TN.shape != (tokens, outputs) or x_TK.shape[1] != inputs:
        raise ValueError(f"shapes do not fit: {out_TN.shape=}, {x_TK.shape=}, {weight_NK.shape=}")
    if x_TK.stride(1) != 1 or not weight_NK.is_contiguous() or not out_TN.is_contiguous():
        raise ValueError("x needs a contiguous last dimension, weight and out to be contiguous")
    if not tokens:
        return out_TN
    blocks, token_blocks = -(-outputs // _ROWS), -(-tokens // _TOKENS)
    segments = _segments(blocks, inputs)
    is_split = segments > 1 and blocks * token_blocks < _ENOUGH_PROGRAMS
    parts = out_TN
    if is_split:
        parts = torch.empty(segments, tokens, outputs, dtype=torch.float32, device=x_TK.device)
    wide = x_TK.dtype == torch.float32
    _product_kernel[(blocks, token_blocks, segments if is_split else 1)](
        out_TN,
        parts,
        x_TK,
        weight_NK,
        weight_NK if bias_N is None else bias_N,
        tokens,
        outputs,
        x_TK.stride(0),
        IN=inputs,
        ROWS=_ROWS,
        TOKENS=_TOKENS,
        BLOCK_K=32 if wide else 64,
        SEGMENTS=segments,
        IS_SPLIT=is_split,
        HAS_BIAS=bias_N is not None,
        PRECISION="ieee" if wide else "tf32",
        num_warps=4,
        num_stages=2 if wide else 4,
        **overlapping(),
    )
    if is_split:
        _sum_kernel[(-(-outputs // _COLUMNS_OF_A_SUM), tokens)](
            out_TN,
            parts,
            weight_NK if bias_N is None else bias_N,
            tokens,
            outputs,
            SEGMENTS=segments,
            BLOCK=_COLUMNS_OF_A_SUM,
            HAS_BIAS=bias_N is not None,
            num_warps=4,
            **overlapping(),
        )
    return out_TN


def _segments(blocks: int, inputs: int) -> int:
    """How many the inputs are cut into: enough to keep a GPU busy with few tokens."""
    segments = 1
    while blocks * segments < _ENOUGH_PROGRAMS and inputs // (2 * segments) >= _SHORTEST_SEGMENT:
        segments *= 2
    return segments


@quick
@triton.jit(do_not_specialize=["tokens"])
def _product_kernel(
    y_ptr,
    parts_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    tokens,
    outputs,
    stride_x_t,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SEGMENTS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """The product of y transposed, since tensor cores want the larger operand first."""
    n_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t_T, k_K = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK_K)
    inside_N, inside_T = n_N < outputs, t_T < tokens
    # Rows beyond the last read the last one again, which costs no mask.
    weight_NK = weight_ptr + tl.minimum(n_N, outputs - 1).to(tl.int64)[:, None] * IN + k_K[None, :]
    x_KT = x_ptr + t_T.to(tl.int64)[None, :] * stride_x_t + k_K[:, None]
    inside_NT = inside_N[:, None] & inside_T[None, :]
    place_NT = t_T.to(tl.int64)[None, :] * outputs + n_N[:, None]
    share: tl.constexpr = (IN + SEGMENTS * BLOCK_K - 1) // (SEGMENTS * BLOCK_K) * BLOCK_K
    wait_for_inputs(PDL)
    total_NT = tl.zeros([ROWS, TOKENS], tl.float32)
    first_segment, count = 0, SEGMENTS
    if IS_SPLIT:
        first_segment, count = tl.program_id(2), 1
    for segment in range(first_segment, first_segment + count):
        acc_NT = tl.zeros([ROWS, TOKENS], tl.float32)
        for first in range(segment * share, tl.minimum((segment + 1) * share, IN), BLOCK_K):
            if IN % BLOCK_K == 0:
                w_NK = tl.load(weight_NK + first)
                a_KT = tl.load(x_KT + first, mask=inside_T[None, :], other=0.0)
            else:
                inside_K = first + k_K < IN
                w_NK = tl.load(weight_NK + first, mask=inside_K[None, :], other=0.0)
                a_KT = tl.load(x_KT + first, mask=inside_T[None, :] & inside_K[:, None], other=0.0)
            acc_NT = tl.dot(w_NK, a_KT, acc_NT, input_precision=PRECISION)
        total_NT += acc_NT
    if IS_SPLIT:
        stride = tokens.to(tl.int64) * outputs
        tl.store(parts_ptr + first_segment * stride + place_NT, total_NT, mask=inside_NT)
    else:
        if HAS_BIAS:
            total_NT += tl.load(bias_ptr + n_N, mask=inside_N, other=0.0).to(tl.float32)[:, None]
        tl.store(y_ptr + place_NT, total_NT.to(y_ptr.dtype.element_ty), mask=inside_NT)


@quick
@triton.jit(do_not_specialize=["tokens"])
def _sum_kernel(
    y_ptr,
    parts_ptr,
    bias_ptr,
    tokens,
    outputs,
    SEGMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    n_N = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_N = n_N < outputs
    place_N = tl.program_id(1).to(tl.int64) * outputs + n_N
    stride = tokens.to(tl.int64) * outputs
    wait_for_inputs(PDL)
    total_N = tl.zeros([BLOCK], tl.float32)
    for segment in tl.static_range(SEGMENTS):
        total_N += tl.load(parts_ptr + segment * stride + place_N, mask=inside_N, other=0.0)
    if HAS_BIAS:
        total_N += tl.load(bias_ptr + n_N, mask=inside_N, other=0.0).to(tl.float32)
    tl.store(y_ptr + place_N, total_N.to(y_ptr.dtype.element_ty), mask=inside_N)
