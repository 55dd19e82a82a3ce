"""Linear layers over few tokens in Triton.

Semantics: `y = x @ weight.T + bias`, summed in float32 and rounded once. Where the inputs of an output are
split over programs, the last of them to end adds the parts in a fixed order, so that the same inputs always
give the same bits.

Legend: T tokens, K in features, N out features.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.linear.tiles import MOST_BLOCKS, Tile


def parts(x_TK: Tensor, weight_NK: Tensor, tile: Tile) -> Tensor:
    """The product as float32 `[C, T, N]`, still to be summed over C, the splits of the tile."""
    outputs = weight_NK.shape[0]
    parts_CTN = torch.empty(tile.splits, len(x_TK), outputs, dtype=torch.float32, device=x_TK.device)
    _multiply(parts_CTN[0], x_TK, weight_NK, None, tile, parts_CTN)
    return parts_CTN


def multiply(out_TN: Tensor, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, tile: Tile) -> None:
    """Raises ValueError for what does not fit."""
    _multiply(out_TN, x_TK, weight_NK, bias_N, tile, None)


def _multiply(
    out_TN: Tensor,
    x_TK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    tile: Tile,
    parts_CTN: Tensor | None,
) -> None:
    """With `parts`, these are left there and nothing is summed."""
    tokens, (outputs, inputs) = len(x_TK), weight_NK.shape
    if out_TN.shape != (tokens, outputs) or x_TK.shape[1] != inputs or not 0 < tokens <= tile.tokens:
        raise ValueError(f"shapes do not fit: {out_TN.shape=}, {x_TK.shape=}, {weight_NK.shape=}, {tile}")
    if x_TK.stride(1) != 1 or not weight_NK.is_contiguous() or out_TN.stride(1) != 1:
        raise ValueError("x, weight and out need a contiguous last dimension")
    blocks = -(-outputs // tile.rows)
    has_bias = bias_N is not None
    if tile.tokens == 1:
        _vector_kernel[(blocks,)](
            out_TN,
            x_TK,
            weight_NK,
            bias_N if bias_N is not None else weight_NK,
            outputs,
            IN=inputs,
            ROWS=tile.rows,
            BLOCK_K=tile.block_k,
            HAS_BIAS=has_bias,
            num_warps=tile.warps,
            **overlapping(),
        )
        return
    if tile.splits > 1 and blocks > MOST_BLOCKS:
        raise ValueError(f"{blocks} blocks cannot be split")
    summed, arrived = parts_CTN is None, out_TN
    if parts_CTN is None:
        parts_CTN = out_TN
        if tile.splits > 1:
            parts_CTN = torch.empty(tile.splits, tokens, outputs, dtype=torch.float32, device=x_TK.device)
            arrived = _arrived(x_TK.device)
    _matrix_kernel[(blocks, tile.splits)](
        out_TN,
        x_TK,
        weight_NK,
        bias_N if bias_N is not None else weight_NK,
        parts_CTN,
        arrived,
        tokens,
        outputs,
        x_TK.stride(0),
        out_TN.stride(0),
        IN=inputs,
        ROWS=tile.rows,
        TOKENS=tile.tokens,
        BLOCK_K=tile.block_k,
        SPLITS=tile.splits,
        IS_SUMMED=summed,
        PREFETCH=tile.prefetch,
        HAS_BIAS=has_bias,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **overlapping(),
    )


@cache
def _arrived(device: torch.device) -> Tensor:
    """Counts the programs of a block that have ended; zero between launches."""
    return torch.zeros(MOST_BLOCKS, dtype=torch.int32, device=device)


@quick
@triton.jit(do_not_specialize=["outputs"])
def _vector_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    outputs,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token. The first weights are on their way before the input is there."""
    n_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k_K = tl.arange(0, BLOCK_K)
    inside_N = n_N < outputs
    weight_NK = weight_ptr + n_N.to(tl.int64)[:, None] * IN + k_K[None, :]
    first_NK = tl.load(weight_NK, mask=inside_N[:, None] & (k_K < IN)[None, :], other=0.0)
    wait_for_inputs(PDL)
    x_K = tl.load(x_ptr + k_K, mask=k_K < IN, other=0.0).to(tl.float32)
    acc_NK = first_NK.to(tl.float32) * x_K[None, :]
    for begin in tl.static_range(BLOCK_K, IN, BLOCK_K):
        inside_K = begin + k_K < IN
        w_NK = tl.load(weight_NK + begin, mask=inside_N[:, None] & inside_K[None, :], other=0.0)
        x_K = tl.load(x_ptr + begin + k_K, mask=inside_K, other=0.0).to(tl.float32)
        acc_NK += w_NK.to(tl.float32) * x_K[None, :]
    y_N = tl.sum(acc_NK, 1)
    if HAS_BIAS:
        y_N += tl.load(bias_ptr + n_N, mask=inside_N, other=0.0).to(tl.float32)
    tl.store(y_ptr + n_N, y_N.to(y_ptr.dtype.element_ty), mask=inside_N)


@quick
@triton.jit(do_not_specialize=["tokens", "outputs"])
def _matrix_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    parts_ptr,
    arrived_ptr,
    tokens,
    outputs,
    stride_x_t,
    stride_y_t,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    IS_SUMMED: tl.constexpr,
    PREFETCH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Weights stand where tensor cores want the larger operand: the product is that of y transposed."""
    block, split = tl.program_id(0), tl.program_id(1)
    n_N = block * ROWS + tl.arange(0, ROWS)
    t_T, k_K = tl.arange(0, TOKENS), tl.arange(0, BLOCK_K)
    inside_N, inside_T = n_N < outputs, t_T < tokens
    # Rows beyond the last read the last one again, which costs no mask.
    weight_NK = weight_ptr + tl.minimum(n_N, outputs - 1).to(tl.int64)[:, None] * IN + k_K[None, :]
    x_KT = x_ptr + t_T.to(tl.int64)[None, :] * stride_x_t + k_K[:, None]
    share = tl.cdiv(tl.cdiv(IN, SPLITS), BLOCK_K) * BLOCK_K
    begin = split * share
    end = tl.minimum(begin + share, IN)
    acc_NT = tl.zeros([ROWS, TOKENS], tl.float32)
    if PDL and PREFETCH > 0:
        # One address for each line of 128 bytes.
        line_NL = (weight_ptr + tl.minimum(n_N, outputs - 1).to(tl.int64)[:, None] * IN) + (
            begin + tl.arange(0, PREFETCH // 64) * 64
        )[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [line_NL.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    wait_for_inputs(PDL)
    for first in range(begin, end, BLOCK_K):
        if IN % BLOCK_K == 0:
            w_NK = tl.load(weight_NK + first)
            a_KT = tl.load(x_KT + first, mask=inside_T[None, :], other=0.0)
        else:
            inside_K = first + k_K < IN
            w_NK = tl.load(weight_NK + first, mask=inside_K[None, :], other=0.0)
            a_KT = tl.load(x_KT + first, mask=inside_T[None, :] & inside_K[:, None], other=0.0)
        acc_NT = tl.dot(w_NK, a_KT, acc_NT)
    inside_NT = inside_N[:, None] & inside_T[None, :]
    if SPLITS > 1 or not IS_SUMMED:
        part_NT = parts_ptr + t_T.to(tl.int64)[None, :] * outputs + n_N[:, None]
        stride = tokens.to(tl.int64) * outputs
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
    if HAS_BIAS:
        acc_NT += tl.load(bias_ptr + n_N, mask=inside_N, other=0.0).to(tl.float32)[:, None]
    y_NT = y_ptr + t_T.to(tl.int64)[None, :] * stride_y_t + n_N[:, None]
    tl.store(y_NT, acc_NT.to(y_ptr.dtype.element_ty), mask=inside_NT)
