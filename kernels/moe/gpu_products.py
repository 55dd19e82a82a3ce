"""Products of experts in Triton: each pair of token and expert with that expert's matrix.

Semantics: those of `reference.experts`, its three steps; sums in float32 in an order that depends on nothing
but the shapes. Tiles and order are those of `gpu_routing.Arrangement`; where there are none, each pair is a
tile of its own.

Legend: P pairs, B pairs of a tile, N outputs of a tile, K in features, D hidden, I an expert's width.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.moe.gpu_routing import Arrangement
from kernels.moe.routing import Routing
from kernels.moe.tiles import Tile

ALIGNMENT = 16
"""Numbers: rows of a multiple of them are stored many numbers at a time, for which registers do."""
_COLUMNS_OF_A_SUM = 512


def gate_up(
    x_TD: Tensor,
    weight_E2ID: Tensor,
    routing: Routing,
    arrangement: Arrangement | None,
    tile: Tile,
    *,
    activated: bool,
) -> Tensor:
    """`[P, 2 I]`, or `activated` `silu(gate) * up` `[P, I]`. Pairs of expert -1 are not written."""
    outputs = weight_E2ID.shape[1]
    out_PN = x_TD.new_empty(routing.experts_TX.numel(), outputs // 2 if activated else outputs)
    top_k = routing.experts_TX.shape[1]
    rows = {"pairs_of_row": top_k, "activated": activated, "ready": False}
    multiply(out_PN, x_TD, weight_E2ID, routing, arrangement, tile, **rows)
    return out_PN


def down(
    wide_PI: Tensor, weight_EDI: Tensor, routing: Routing, arrangement: Arrangement | None, tile: Tile
) -> Tensor:
    """`[P, D]`. Pairs of expert -1 are not written."""
    out_PD = wide_PI.new_empty(len(wide_PI), weight_EDI.shape[1])
    rows = {"pairs_of_row": 1, "activated": False, "ready": True}
    multiply(out_PD, wide_PI, weight_EDI, routing, arrangement, tile, **rows)
    return out_PD


def multiply(
    out_PN: Tensor,
    x_K: Tensor,
    weight_ENK: Tensor,
    routing: Routing,
    arrangement: Arrangement | None,
    tile: Tile,
    *,
    pairs_of_row: int,
    activated: bool,
    ready: bool,
) -> None:
    """out[p] = weight[expert of p] @ x[p // pairs_of_row]; `ready`: the arrangement is not that of the last
    launch. Raises ValueError for what does not fit.
    """
    outputs, inputs = weight_ENK.shape[1:]
    pairs = routing.experts_TX.numel()
    if x_K.shape != (pairs // pairs_of_row, inputs) or (arrangement and arrangement.block != tile.pairs):
        raise ValueError(f"shapes do not fit: {x_K.shape=}, {weight_ENK.shape=}, {tile=}, {pairs=}")
    if not (x_K.is_contiguous() and weight_ENK.is_contiguous() and routing.experts_TX.is_contiguous()):
        raise ValueError("x, weights and experts must be contiguous")
    tiles = pairs if arrangement is None else arrangement.tiles_5N.shape[1]
    if not tiles:
        return
    _product_kernel[(tiles, -(-outputs // tile.rows))](
        out_PN,
        x_K,
        weight_ENK,
        routing.experts_TX,
        routing.experts_TX if arrangement is None else arrangement.order_P,
        routing.experts_TX if arrangement is None else arrangement.tiles_5N,
        tiles,
        outputs,
        IN=inputs,
        PAIRS_OF_ROW=pairs_of_row,
        ALONE=arrangement is None,
        ACTIVATED=activated,
        ALIGNED=out_PN.shape[1] % ALIGNMENT == 0,
        ROWS=tile.rows,
        BLOCK_B=tile.pairs,
        BLOCK_K=tile.block_k,
        PREFETCH=ready,
        PRECISION=precision(x_K),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **overlapping(),
    )


def silu_mul(gate_up_P2I: Tensor) -> Tensor:
    """silu(gate) * up of every pair, `[P, I]`."""
    from kernels.fused import gpu

    return gpu.silu_mul(gate_up_P2I)


def add_up(y_PD: Tensor, routing: Routing) -> Tensor:
    """Each token's pairs times their weights, `[T, D]`; pairs of expert -1 are not read."""
    tokens, top_k = routing.experts_TX.shape
    hidden = y_PD.shape[1]
    out_TD = y_PD.new_empty(tokens, hidden)
    if not (y_PD.is_contiguous() and routing.weights_TX.is_contiguous()):
        raise ValueError("what is added up must be contiguous")
    if tokens:
        _add_up_kernel[(-(-hidden // _COLUMNS_OF_A_SUM), tokens)](
            out_TD,
            y_PD,
            routing.experts_TX,
            routing.weights_TX,
            HIDDEN=hidden,
            TOP_K=top_k,
            BLOCK_D=_COLUMNS_OF_A_SUM,
            num_warps=2,
            **overlapping(),
        )
    return out_TD


def precision(tensor: Tensor) -> str:
    # tf32 keeps 10 bits, too few to be compared with the CPU.
    return "ieee" if tensor.dtype == torch.float32 else "tf32"


@triton.jit
def locate(tile, experts_ptr, order_ptr, tiles_ptr, tiles, ALONE: tl.constexpr, BLOCK_B: tl.constexpr):
    """A tile's expert, pairs `[B]`, which of them are any, and their number."""
    b_B = tl.arange(0, BLOCK_B)
    if ALONE:
        expert = tl.load(experts_ptr + tile)
        count = (expert >= 0).to(tl.int32)
        pair_B = tile + 0 * b_B
    else:
        expert, count = tl.load(tiles_ptr + tile), tl.load(tiles_ptr + 2 * tiles + tile)
        # A place beyond the last has the last pair, so that x needs no mask.
        pair_B = tl.load(order_ptr + tl.load(tiles_ptr + tiles + tile) + tl.minimum(b_B, count - 1),
                         mask=count > 0, other=0)  # fmt: skip
    # An idle tile's expert is whatever memory held.
    return tl.where(count > 0, expert, 0), pair_B, b_B < count, count


@triton.jit
def row_of(block, outputs, ROWS: tl.constexpr, ACTIVATED: tl.constexpr):
    """The weight's rows of a block; activated, a gate's and its up's side by side."""
    n_N = block * ROWS + tl.arange(0, ROWS)
    if ACTIVATED:
        n_N = n_N // 2 + (n_N % 2) * (outputs // 2)
    return tl.minimum(n_N, outputs - 1), n_N


@triton.jit
def prefetch(weight_N):
    """Have the first columns of rows on their way to L2: one address for each line of 128 bytes."""
    line_NL = weight_N[:, None] + (tl.arange(0, 4) * 64)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [line_NL.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def product(
    weight_N, x_B, IN: tl.constexpr, ROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`[N, B]`: the rows of weights that lie at the pointers `weight_N` times what lies at `x_B`.

    Weights stand where tensor cores want the larger operand.
    """
    k_K = tl.arange(0, BLOCK_K)
    weight_NK = weight_N[:, None] + k_K[None, :]
    x_KB = x_B[None, :] + k_K[:, None]
    acc_NB = tl.zeros([ROWS, BLOCK_B], tl.float32)
    for first in range(0, IN, BLOCK_K):
        if IN % BLOCK_K == 0:
            w_NK, a_KB = tl.load(weight_NK + first), tl.load(x_KB + first)
        else:
            inside_K = first + k_K < IN
            w_NK = tl.load(weight_NK + first, mask=inside_K[None, :], other=0.0)
            a_KB = tl.load(x_KB + first, mask=inside_K[:, None], other=0.0)
        acc_NB = tl.dot(w_NK, a_KB, acc_NB, input_precision=PRECISION)
    return acc_NB


@triton.jit
def halves(acc_NB, ROWS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Gate's and up's rows, which `row_of` has put side by side."""
    return tl.split(tl.permute(tl.reshape(acc_NB, [ROWS // 2, 2, BLOCK_B]), (0, 2, 1)))


@triton.jit
def silu_times(gate, up):
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def store_columns(y_ptr, y_NB, n_N, columns, pair_B, inside_B, ALIGNED: tl.constexpr):
    if ALIGNED:
        columns = columns // 16 * 16  # which says so to the compiler
    place_NB = y_ptr + pair_B.to(tl.int64)[None, :] * columns + n_N[:, None]
    tl.store(place_NB, y_NB.to(y_ptr.dtype.element_ty), mask=(n_N < columns)[:, None] & inside_B[None, :])


@quick
@triton.jit(do_not_specialize=["tiles", "outputs"])
def _product_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    experts_ptr,
    order_ptr,
    tiles_ptr,
    tiles,
    outputs,
    IN: tl.constexpr,
    PAIRS_OF_ROW: tl.constexpr,
    ALONE: tl.constexpr,
    ACTIVATED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PREFETCH: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """With PREFETCH, routing and order must be those of a kernel before the one before this."""
    tile, block = tl.program_id(0), tl.program_id(1)
    row_N, n_N = row_of(block, outputs, ROWS, ACTIVATED)
    if not PREFETCH:
        wait_for_inputs(PDL)
    expert, pair_B, inside_B, count = locate(tile, experts_ptr, order_ptr, tiles_ptr, tiles, ALONE, BLOCK_B)
    weight_N = weight_ptr + expert.to(tl.int64) * outputs * IN + row_N * IN
    if PREFETCH:
        if PDL and count > 0:
            prefetch(weight_N)
        wait_for_inputs(PDL)
    if count == 0:
        return
    x_B = x_ptr + (pair_B // PAIRS_OF_ROW).to(tl.int64) * IN
    acc_NB = product(weight_N, x_B, IN, ROWS, BLOCK_B, BLOCK_K, PRECISION)
    if ACTIVATED:
        gate_NB, up_NB = halves(acc_NB, ROWS, BLOCK_B)
        i_N = block * (ROWS // 2) + tl.arange(0, ROWS // 2)
        store_columns(y_ptr, silu_times(gate_NB, up_NB), i_N, outputs // 2, pair_B, inside_B, ALIGNED)
    else:
        store_columns(y_ptr, acc_NB, n_N, outputs, pair_B, inside_B, ALIGNED)


@quick
@triton.jit
def _add_up_kernel(
    out_ptr,
    y_ptr,
    experts_ptr,
    weights_ptr,
    HIDDEN: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    d_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    token = tl.program_id(1).to(tl.int64)
    inside_D = d_D < HIDDEN
    wait_for_inputs(PDL)
    acc_D = tl.zeros([BLOCK_D], tl.float32)
    for x in tl.static_range(TOP_K):
        pair = token * TOP_K + x
        is_any = tl.load(experts_ptr + pair) >= 0
        y_D = tl.load(y_ptr + pair * HIDDEN + d_D, mask=inside_D & is_any, other=0.0).to(tl.float32)
        acc_D += tl.where(is_any, tl.load(weights_ptr + pair), 0.0) * y_D
    tl.store(out_ptr + token * HIDDEN + d_D, acc_D.to(out_ptr.dtype.element_ty), mask=inside_D)
