"""Linear layers over few tokens in Triton.

Semantics: `y = x @ weight.T + bias`, summed in float32 and rounded once. Where the inputs of an output are
split over programs, the last of them to end adds the parts in a fixed order, so that the same inputs always
give the same bits. Gated, the output is `silu(gate) * up` of that y, whose first half is gate, rounded again.

Legend: T tokens, K in features, N out features, I half of them.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.linear.gating import silu_mul_halves
from kernels.linear.matrix import matrix_kernel
from kernels.linear.tiles import MOST_BLOCKS, Tile


def parts(x_TK: Tensor, weight_NK: Tensor, tile: Tile) -> Tensor:
    """The product as float32 `[C, T, N]`, still to be summed over C, the splits of the tile."""
    parts_CTN = _parts(x_TK, weight_NK, tile)
    _check(parts_CTN[0], x_TK, weight_NK, tile, gated=False, in_parts=True)
    _multiply(parts_CTN[0], x_TK, weight_NK, None, tile, gated=False, parts_CTN=parts_CTN)
    return parts_CTN


def multiply(
    out: Tensor, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, tile: Tile, *, gated: bool = False
) -> None:
    """To out `[T, N]` or, gated, `[T, I]`. Raises ValueError for what does not fit."""
    _check(out, x_TK, weight_NK, tile, gated=gated, in_parts=tile.splits > 1)
    outputs, inputs = weight_NK.shape
    if tile.tokens > 1:
        _multiply(out, x_TK, weight_NK, bias_N, tile, gated=gated, parts_CTN=None)
        return
    _vector_kernel[(-(-outputs // tile.rows),)](
        out,
        x_TK,
        weight_NK,
        bias_N if bias_N is not None else weight_NK,
        out.shape[1],
        IN=inputs,
        ROWS=tile.rows,
        BLOCK_K=tile.block_k,
        IS_GATED=gated,
        HAS_BIAS=bias_N is not None,
        num_warps=tile.warps,
        **overlapping(),
    )


def _check(out: Tensor, x_TK: Tensor, weight_NK: Tensor, tile: Tile, *, gated: bool, in_parts: bool) -> None:
    outputs, inputs = weight_NK.shape
    shape = (len(x_TK), outputs // 2 if gated else outputs)
    if out.shape != shape or x_TK.shape[1] != inputs or not 0 < len(x_TK) <= tile.tokens:
        raise ValueError(f"shapes do not fit: {out.shape=}, {x_TK.shape=}, {weight_NK.shape=}, {tile}")
    if x_TK.stride(1) != 1 or not weight_NK.is_contiguous() or out.stride(1) != 1:
        raise ValueError("x, weight and out need a contiguous last dimension")
    can_be_split = not gated and tile.rows.bit_count() == 1 and -(-outputs // tile.rows) <= MOST_BLOCKS
    if in_parts and not can_be_split:
        raise ValueError(f"inputs cannot be split: {outputs=}, {gated=}, {tile}")


def _multiply(
    out: Tensor,
    x_TK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    tile: Tile,
    *,
    gated: bool,
    parts_CTN: Tensor | None,
) -> None:
    """With `parts`, these are left there and nothing is summed."""
    outputs, inputs = weight_NK.shape
    rows = 1 << (tile.rows.bit_length() - 1)
    summed, arrived = parts_CTN is None, out
    if parts_CTN is None:
        parts_CTN = out
        if tile.splits > 1:
            parts_CTN, arrived = _parts(x_TK, weight_NK, tile), _arrived(x_TK.device)
    matrix_kernel[(-(-outputs // tile.rows), tile.splits)](
        out,
        x_TK,
        weight_NK,
        bias_N if bias_N is not None else weight_NK,
        parts_CTN,
        arrived,
        len(x_TK),
        out.shape[1],
        x_TK.stride(0),
        out.stride(0),
        IN=inputs,
        ROWS=rows,
        MORE=tile.rows - rows,
        TOKENS=tile.tokens,
        BLOCK_K=tile.block_k,
        STAGES=tile.stages,
        SPLITS=tile.splits,
        IS_SUMMED=summed,
        IS_GATED=gated,
        PREFETCH=tile.prefetch,
        HAS_BIAS=bias_N is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **overlapping(),
    )


def _parts(x_TK: Tensor, weight_NK: Tensor, tile: Tile) -> Tensor:
    return torch.empty(tile.splits, len(x_TK), len(weight_NK), dtype=torch.float32, device=x_TK.device)


@cache
def _arrived(device: torch.device) -> Tensor:
    """Counts the programs of a block that have ended; zero between launches."""
    return torch.zeros(MOST_BLOCKS, dtype=torch.int32, device=device)


@quick
@triton.jit(do_not_specialize=["columns"])
def _vector_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    columns,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token. The first weights are on their way before the input is there; y has `columns`."""
    COUNT: tl.constexpr = ROWS // 2 if IS_GATED else ROWS
    r_N, k_K = tl.arange(0, ROWS), tl.arange(0, BLOCK_K)
    n_N = tl.program_id(0) * COUNT + r_N % COUNT
    inside_N = n_N < columns
    row_N = n_N + r_N // COUNT * columns
    weight_NK = weight_ptr + row_N.to(tl.int64)[:, None] * IN + k_K[None, :]
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
        y_N += tl.load(bias_ptr + row_N, mask=inside_N, other=0.0).to(tl.float32)
    if IS_GATED:
        y_N = silu_mul_halves(y_N, y_ptr.dtype.element_ty, ROWS)
        n_N = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
        inside_N = n_N < columns
    tl.store(y_ptr + n_N, y_N.to(y_ptr.dtype.element_ty), mask=inside_N)
