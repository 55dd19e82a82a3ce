"""Draws from a softmax and its normaliser in Triton, each row by itself.

The noise of a draw is made where it is added, and never stored. Semantics:
`argmax_v(logits[n, v] - log(-log1p(-u)))`, u in (0, 1) from SplitMix64 (Steele, Lea and Flood 2014) of (seed,
position, v): the first 53 bits of its value, and a half, over 2**53.

Legend: N rows, V vocabulary, C chunks of it.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.sampling.largest import best_of_chunks, largest_of_chunk

_LOGITS_OF_A_PROGRAM = 2048


def draw(logits_NV: Tensor, seeds_N: Tensor, positions_N: Tensor) -> Tensor:
    """Tokens int64 `[N]` of float32 logits; seeds (the bits of a uint64) and positions are int64 `[N]`."""
    rows, vocab_size = logits_NV.shape
    if logits_NV.stride(1) != 1 or logits_NV.dtype != torch.float32:
        raise ValueError("logits need a contiguous last dimension and to be float32")
    chunks = -(-vocab_size // _LOGITS_OF_A_PROGRAM)
    largest_NC = torch.empty(rows, chunks, dtype=torch.float32, device=logits_NV.device)
    index_NC = torch.empty(rows, chunks, dtype=torch.int32, device=logits_NV.device)
    if rows:
        _draw_kernel[(chunks, rows)](
            largest_NC,
            index_NC,
            logits_NV,
            seeds_N,
            positions_N,
            chunks,
            vocab_size,
            logits_NV.stride(0),
            BLOCK=_LOGITS_OF_A_PROGRAM,
            num_warps=4,
            **overlapping(),
        )
    return best_of_chunks(largest_NC, index_NC)


def logsumexp(logits_NV: Tensor) -> Tensor:
    """Float32 `[N]`; a row's bits do not depend on the other rows."""
    rows, vocab_size = logits_NV.shape
    if logits_NV.stride(1) != 1 or logits_NV.dtype != torch.float32:
        raise ValueError("logits need a contiguous last dimension and to be float32")
    total_N = torch.empty(rows, dtype=torch.float32, device=logits_NV.device)
    if rows:
        _logsumexp_kernel[(rows,)](
            total_N,
            logits_NV,
            vocab_size,
            logits_NV.stride(0),
            BLOCK=4 * _LOGITS_OF_A_PROGRAM,
            num_warps=16,
            **overlapping(),
        )
    return total_N


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _gumbel(seed, position, v_V):
    golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    key = _mix(_mix(seed.to(tl.uint64) + golden) + position.to(tl.uint64) * golden)
    bits_V = _mix(key + (v_V + 1).to(tl.uint64) * golden) >> 11
    # 53 bits in a float32 keep their relative precision near 0, and it is the smallest that win.
    u_V = tl.minimum((bits_V.to(tl.int64).to(tl.float32) + 0.5) * 1.1102230246251565e-16, 0.99999994)
    # -log1p(-u): a series where 1 - u would round too much of u away.
    series_V = 1.0 / 8 + u_V * (1.0 / 9)
    for n in tl.static_range(7, 0, -1):
        series_V = 1.0 / n + u_V * series_V
    wait_V = tl.where(u_V < 0.125, u_V * series_V, -tl.log(1.0 - u_V))
    return -tl.log(wait_V)


@quick
@triton.jit(do_not_specialize=["chunks"])
def _draw_kernel(
    largest_ptr,
    index_ptr,
    logits_ptr,
    seeds_ptr,
    positions_ptr,
    chunks,
    vocab_size,
    stride_n,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    v_V = chunk * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(PDL)
    noise_V = _gumbel(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), v_V)
    logits_V = tl.load(logits_ptr + row * stride_n + v_V, mask=v_V < vocab_size, other=float("-inf"))
    largest, index = largest_of_chunk(logits_V + noise_V)
    tl.store(largest_ptr + row * chunks + chunk, largest)
    tl.store(index_ptr + row * chunks + chunk, chunk * BLOCK + index)


@quick
@triton.jit
def _logsumexp_kernel(total_ptr, logits_ptr, vocab_size, stride_n, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    v_V = tl.arange(0, BLOCK)
    wait_for_inputs(PDL)
    largest_V = tl.full([BLOCK], float("-inf"), tl.float32)
    total_V = tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocab_size, BLOCK):
        inside_V = first + v_V < vocab_size
        logits_V = tl.load(logits_ptr + row * stride_n + first + v_V, mask=inside_V, other=float("-inf"))
        new_V = tl.maximum(largest_V, logits_V)
        anchor_V = tl.where(new_V == float("-inf"), 0.0, new_V)
        total_V = total_V * tl.exp(largest_V - anchor_V) + tl.exp(logits_V - anchor_V)
        largest_V = new_V
    largest = tl.max(largest_V, 0)
    total = tl.sum(total_V * tl.exp(largest_V - largest), 0)
    tl.store(total_ptr + row, largest + tl.log(total))
