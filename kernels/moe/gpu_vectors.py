"""Experts of very few tokens in Triton: each pair is vectors times matrices, without tensor cores, and
nothing needs to be sorted.

Semantics: those of `reference.experts`; sums in float32 in an order that depends on nothing but the shapes.

Legend: T tokens, X experts of a token, P pairs, N rows of weights, J rows of all of a token's experts, K in
features, D hidden, I an expert's width.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.moe.gpu_products import row_of, silu_times
from kernels.moe.interface import ExpertWeights
from kernels.moe.routing import Routing

MOST_TOKENS = 2

GATE_UP = {"ROWS": 8, "BLOCK_K": 1024, "num_warps": 4}
DOWN = {"ROWS": 4, "BLOCK_K": 128, "num_warps": 4}


def experts(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Of few tokens, `[T, D]`."""
    return down(gate_up(x_TD, weights.gate_up_E2ID, routing), weights.down_EDI, routing)


def gate_up(x_TD: Tensor, weight_E2ID: Tensor, routing: Routing) -> Tensor:
    """The activation `[P, I]`."""
    outputs, inputs = weight_E2ID.shape[1:]
    tokens, top_k = routing.experts_TX.shape
    wide_PI = x_TD.new_empty(tokens * top_k, outputs // 2)
    check(x_TD, weight_E2ID, routing)
    _gate_up_kernel[(-(-outputs // GATE_UP["ROWS"]), tokens * top_k)](
        wide_PI,
        x_TD,
        weight_E2ID,
        routing.experts_TX,
        outputs,
        IN=inputs,
        TOP_K=top_k,
        **GATE_UP,
        **overlapping(),
    )
    return wide_PI


def down(wide_PI: Tensor, weight_EDI: Tensor, routing: Routing) -> Tensor:
    """Each token's pairs times their weights, `[T, D]`."""
    outputs, inputs = weight_EDI.shape[1:]
    tokens, top_k = routing.experts_TX.shape
    out_TD = wide_PI.new_empty(tokens, outputs)
    check(wide_PI, weight_EDI, routing)
    _down_kernel[(-(-outputs // DOWN["ROWS"]), tokens)](
        out_TD,
        wide_PI,
        weight_EDI,
        routing.experts_TX,
        routing.weights_TX,
        outputs,
        IN=inputs,
        TOP_K=top_k,
        BLOCK_X=1 << (top_k - 1).bit_length(),
        **DOWN,
        **overlapping(),
    )
    return out_TD


def check(x: Tensor, weight: Tensor, routing: Routing) -> None:
    """Raises ValueError for what does not fit."""
    if x.shape[1] != weight.shape[2] or len(x) not in (len(routing.experts_TX), routing.experts_TX.numel()):
        raise ValueError(f"shapes do not fit: {x.shape=}, {weight.shape=}, {routing.experts_TX.shape=}")
    tensors = (x, weight, *routing)
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("x, weights and routing must be contiguous")


@triton.jit
def dot_rows(weight_N, x_N, inside_N, IN: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """`[N]`: rows of a weight times rows of x, of which there may be one for all. Both are pointers."""
    k_K = tl.arange(0, BLOCK_K)
    acc_NK = tl.zeros([ROWS, BLOCK_K], tl.float32)
    for first in tl.static_range(0, IN, BLOCK_K):
        inside_K = first + k_K < IN
        w_NK = load_rows(weight_N, inside_N, first, IN, BLOCK_K)
        x_NK = tl.load(x_N[:, None] + (first + k_K)[None, :], mask=inside_K[None, :], other=0.0)
        acc_NK += w_NK.to(tl.float32) * x_NK.to(tl.float32)
    return tl.sum(acc_NK, 1)


@triton.jit
def load_rows(weight_N, inside_N, first, IN: tl.constexpr, BLOCK_K: tl.constexpr):
    k_K = first + tl.arange(0, BLOCK_K)
    return tl.load(weight_N[:, None] + k_K[None, :], mask=inside_N[:, None] & (k_K < IN)[None, :], other=0.0)


@triton.jit
def rows_of_token(token, block, outputs, experts_ptr, TOP_K: tl.constexpr, BLOCK_X: tl.constexpr,
                  ROWS: tl.constexpr):  # fmt: skip
    """For J = expert x row of all of a token's experts: pair, expert, row, whether there is such a pair."""
    j_J = tl.arange(0, BLOCK_X * ROWS)
    x_J = j_J // ROWS
    pair_J = token * TOP_K + tl.minimum(x_J, TOP_K - 1)
    expert_J = tl.load(experts_ptr + pair_J)
    row_J = tl.minimum(block * ROWS + j_J % ROWS, outputs - 1)
    return pair_J, tl.maximum(expert_J, 0), row_J, (x_J < TOP_K) & (expert_J >= 0)


@triton.jit
def multiply_rows(
    weight_J, first_JK, x_J, inside_J, IN: tl.constexpr, ROWS_J: tl.constexpr, BLOCK_K: tl.constexpr
):
    """`[J]`: like `dot_rows`, the first columns of the weight being there."""
    k_K = tl.arange(0, BLOCK_K)
    acc_JK = tl.zeros([ROWS_J, BLOCK_K], tl.float32)
    for first in tl.static_range(0, IN, BLOCK_K):
        w_JK = first_JK if first == 0 else load_rows(weight_J, inside_J, first, IN, BLOCK_K)
        inside_JK = inside_J[:, None] & (first + k_K < IN)[None, :]
        x_JK = tl.load(x_J[:, None] + (first + k_K)[None, :], mask=inside_JK, other=0.0)
        acc_JK += w_JK.to(tl.float32) * x_JK.to(tl.float32)
    return tl.sum(acc_JK, 1)


@triton.jit
def store_sum(out_ptr, y_J, pair_J, inside_J, weights_ptr, token, block, outputs,
              BLOCK_X: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """A token's outputs: its experts' times their weights, added up."""
    share_J = tl.where(inside_J, tl.load(weights_ptr + pair_J), 0.0)
    sum_N = tl.sum(tl.reshape(tl.where(inside_J, y_J * share_J, 0.0), [BLOCK_X, ROWS]), 0)
    n_N = block * ROWS + tl.arange(0, ROWS)
    tl.store(out_ptr + token * outputs + n_N, sum_N.to(out_ptr.dtype.element_ty), mask=n_N < outputs)


@quick
@triton.jit(do_not_specialize=["outputs"])
def _gate_up_kernel(
    wide_ptr,
    x_ptr,
    weight_ptr,
    experts_ptr,
    outputs,
    IN: tl.constexpr,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    block, pair = tl.program_id(0), tl.program_id(1)
    row_N, n_N = row_of(block, outputs, ROWS, True)
    wait_for_inputs(PDL)
    expert = tl.load(experts_ptr + pair)
    if expert < 0:
        return
    weight_N = weight_ptr + expert.to(tl.int64) * outputs * IN + row_N * IN
    x_1 = x_ptr + (pair // TOP_K) * IN + tl.arange(0, 1)
    y_N = dot_rows(weight_N, x_1, n_N < outputs, IN, ROWS, BLOCK_K)
    gate_N, up_N = tl.split(tl.reshape(y_N, [ROWS // 2, 2]))
    wide_N = silu_times(gate_N, up_N)
    i_N = block * (ROWS // 2) + tl.arange(0, ROWS // 2)
    wide = outputs // 2
    tl.store(wide_ptr + pair * wide + i_N, wide_N.to(wide_ptr.dtype.element_ty), mask=i_N < wide)


@quick
@triton.jit(do_not_specialize=["outputs"])
def _down_kernel(
    out_ptr,
    wide_ptr,
    weight_ptr,
    experts_ptr,
    weights_ptr,
    outputs,
    IN: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Routing must be that of a kernel before the one before this, whose results the first weights need not
    wait for.
    """
    block, token = tl.program_id(0), tl.program_id(1)
    pair_J, expert_J, row_J, inside_J = rows_of_token(
        token, block, outputs, experts_ptr, TOP_K, BLOCK_X, ROWS
    )
    weight_J = weight_ptr + expert_J.to(tl.int64) * outputs * IN + row_J * IN
    first_JK = load_rows(weight_J, inside_J, 0, IN, BLOCK_K)
    wait_for_inputs(PDL)
    y_J = multiply_rows(weight_J, first_JK, wide_ptr + pair_J * IN, inside_J, IN, BLOCK_X * ROWS, BLOCK_K)
    store_sum(out_ptr, y_J, pair_J, inside_J, weights_ptr, token, block, outputs, BLOCK_X, ROWS)
