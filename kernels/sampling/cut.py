"""Top-k and top-p in Triton without sorting: each row's threshold is searched for.

Semantics: a token stays if those with larger logits weigh less than a limit: top-k counts them, top-p adds
up their probabilities. So what ties with the last one that stays does too.

The larger a threshold, the less lies above it; so a few passes over the row, each with some thresholds at
once, narrow down where the limit is passed, until one value is left there.

Legend: N rows, V vocabulary, P thresholds of a pass, B tokens at a time.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs

_TOKENS_AT_ONCE = 4096
_THRESHOLDS = 4


def keep_top_k(logits_NV: Tensor, k_N: Tensor) -> None:
    """Remove from float32 logits, in place, all but the `k_N` (int64) largest of each row; 0 or V and more
    keep all.
    """
    _cut(logits_NV, k_N, is_counted=True)


def keep_top_p(logits_NV: Tensor, p_N: Tensor) -> None:
    """Remove from float32 logits, in place, all but the most probable tokens that together have `p_N`
    (float32) of the probability; 1 keeps all, one always stays.
    """
    _cut(logits_NV, p_N, is_counted=False)


def _cut(logits_NV: Tensor, limits_N: Tensor, *, is_counted: bool) -> None:
    rows, vocab_size = logits_NV.shape
    if logits_NV.stride(1) != 1 or logits_NV.dtype != torch.float32:
        raise ValueError("logits need a contiguous last dimension and to be float32")
    if rows:
        _cut_kernel[(rows,)](
            logits_NV,
            limits_N,
            vocab_size,
            logits_NV.stride(0),
            BLOCK=_TOKENS_AT_ONCE,
            THRESHOLDS=_THRESHOLDS,
            COUNTED=is_counted,
            num_warps=16,
            **overlapping(),
        )


@quick
@triton.jit
def _cut_kernel(
    logits_ptr,
    limits_ptr,
    vocab_size,
    stride_n,
    BLOCK: tl.constexpr,
    THRESHOLDS: tl.constexpr,
    COUNTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """What is kept is above `low`: of the values in (low, high] that the row has, the least that stays."""
    row = tl.program_id(0).to(tl.int64)
    v_1B = tl.arange(0, BLOCK)[None, :]
    wait_for_inputs(PDL)
    limit = tl.load(limits_ptr + row)
    if COUNTED:
        if (limit <= 0) | (limit >= vocab_size):
            return
    elif limit >= 1.0:
        return
    row_ptr = logits_ptr + row * stride_n
    largest_1B = tl.full([1, BLOCK], float("-inf"), tl.float32)
    least_1B = tl.full([1, BLOCK], float("inf"), tl.float32)
    weight_1B = tl.zeros([1, BLOCK], tl.float32)
    for first in tl.range(0, vocab_size, BLOCK, num_stages=3):
        logit_1B = tl.load(row_ptr + first + v_1B, mask=first + v_1B < vocab_size, other=float("-inf"))
        new_1B = tl.maximum(largest_1B, logit_1B)
        if COUNTED:
            weight_1B += tl.where(logit_1B > float("-inf"), 1.0, 0.0)
        else:
            anchor_1B = tl.where(new_1B == float("-inf"), 0.0, new_1B)
            weight_1B = weight_1B * tl.exp(largest_1B - anchor_1B) + tl.exp(logit_1B - anchor_1B)
        largest_1B = new_1B
        least_1B = tl.minimum(least_1B, tl.where(logit_1B > float("-inf"), logit_1B, float("inf")))
    largest, least = tl.max(largest_1B), tl.min(least_1B)
    low = least - tl.maximum(1.0, tl.abs(least))
    if COUNTED:
        wanted = limit.to(tl.float32)
        if tl.sum(weight_1B) <= wanted:
            return
    else:
        total = tl.sum(weight_1B * tl.exp(largest_1B - largest))
        wanted = limit * total
        # All below this together have less than is to be removed.
        low = tl.maximum(low, largest + tl.log((1.0 - limit) * total / vocab_size) - 0.01)

    high, most, passes = largest, largest, 0
    step_P = (tl.arange(0, THRESHOLDS) + 1).to(tl.float32) / (THRESHOLDS + 1)
    # Every pass leaves a fifth of the range; the limit is for infinities.
    while (least < most) & (passes < 100):
        threshold_P = low + (high - low) * step_P
        above_PB = tl.zeros([THRESHOLDS, BLOCK], tl.float32)
        least_1B = tl.full([1, BLOCK], float("inf"), tl.float32)
        most_1B = tl.full([1, BLOCK], float("-inf"), tl.float32)
        for first in tl.range(0, vocab_size, BLOCK, num_stages=3):
            logit_1B = tl.load(row_ptr + first + v_1B, mask=first + v_1B < vocab_size, other=float("-inf"))
            weight_1B = tl.full([1, BLOCK], 1.0, tl.float32) if COUNTED else tl.exp(logit_1B - largest)
            above_PB += tl.where(logit_1B > threshold_P[:, None], weight_1B, 0.0)
            least_1B = tl.minimum(least_1B, tl.where(logit_1B > low, logit_1B, float("inf")))
            most_1B = tl.maximum(most_1B, tl.where(logit_1B <= high, logit_1B, float("-inf")))
        least, most = tl.min(least_1B), tl.max(most_1B)
        is_removed_P = tl.sum(above_PB, 1) >= wanted
        low = tl.maximum(low, tl.max(tl.where(is_removed_P, threshold_P, float("-inf"))))
        high = tl.minimum(high, tl.min(tl.where(is_removed_P, float("inf"), threshold_P)))
        passes += 1

    for first in tl.range(0, vocab_size, BLOCK, num_stages=3):
        place_1B = row_ptr + first + v_1B
        logit_1B = tl.load(place_1B, mask=first + v_1B < vocab_size, other=float("inf"))
        tl.store(place_1B, float("-inf"), mask=(logit_1B <= low) & (first + v_1B < vocab_size))
