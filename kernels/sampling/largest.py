"""The largest logit of each row, in Triton: of chunks first, then among them. The first of equals wins, and
what is no number never does: an adapter may overflow, and even then a token is one of the vocabulary.

Legend: N rows, V vocabulary, C chunks of it.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs

_LOGITS_OF_A_PROGRAM = 4096


def greedy(logits_NV: Tensor) -> Tensor:
    """The index of each row's largest logit; int64 `[N]`."""
    rows, vocab_size = logits_NV.shape
    if logits_NV.stride(1) != 1:
        raise ValueError("logits need a contiguous last dimension")
    chunks = -(-vocab_size // _LOGITS_OF_A_PROGRAM)
    largest_NC = logits_NV.new_empty(rows, chunks, dtype=torch.float32)
    index_NC = logits_NV.new_empty(rows, chunks, dtype=torch.int32)
    if rows:
        _chunk_argmax_kernel[(chunks, rows)](
            largest_NC,
            index_NC,
            logits_NV,
            chunks,
            vocab_size,
            logits_NV.stride(0),
            BLOCK=_LOGITS_OF_A_PROGRAM,
            num_warps=8,
            **overlapping(),
        )
    return best_of_chunks(largest_NC, index_NC)


def best_of_chunks(largest_NC: Tensor, index_NC: Tensor) -> Tensor:
    """The index, int64 `[N]`, that comes with a row's largest of float32; indices are int32."""
    rows, chunks = largest_NC.shape
    tokens_N = torch.empty(rows, dtype=torch.int64, device=largest_NC.device)
    if rows:
        _argmax_kernel[(rows,)](
            tokens_N,
            largest_NC,
            index_NC,
            chunks,
            BLOCK=1 << (chunks - 1).bit_length(),
            num_warps=1,
            **overlapping(),
        )
    return tokens_N


@triton.jit
def largest_of_chunk(values_V):
    """With its index. Of values that do not compare a reduction takes any, one beyond the vocabulary too."""
    numbers_V = tl.where(values_V == values_V, values_V, float("-inf"))
    return tl.max(numbers_V, 0, return_indices=True, return_indices_tie_break_left=True)


@quick
@triton.jit(do_not_specialize=["chunks"])
def _chunk_argmax_kernel(
    largest_ptr,
    index_ptr,
    logits_ptr,
    chunks,
    vocab_size,
    stride_n,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    v_V = chunk * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(PDL)
    logits_V = tl.load(logits_ptr + row * stride_n + v_V, mask=v_V < vocab_size, other=float("-inf"))
    largest, index = largest_of_chunk(logits_V.to(tl.float32))
    tl.store(largest_ptr + row * chunks + chunk, largest)
    tl.store(index_ptr + row * chunks + chunk, chunk * BLOCK + index)


@quick
@triton.jit(do_not_specialize=["chunks"])
def _argmax_kernel(tokens_ptr, largest_ptr, index_ptr, chunks, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c_C = tl.arange(0, BLOCK)
    wait_for_inputs(PDL)
    largest_C = tl.load(largest_ptr + row * chunks + c_C, mask=c_C < chunks, other=float("-inf"))
    best = tl.argmax(largest_C, 0, tie_break_left=True)
    tl.store(tokens_ptr + row, tl.load(index_ptr + row * chunks + tl.minimum(best, chunks - 1)).to(tl.int64))
