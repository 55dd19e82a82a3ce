"""What programs of several kernels do to a product's numbers and to heads.

Legend: H heads, F half a head's dimension: a rotation pairs the two halves.
"""

# pyright: reportGeneralTypeIssues=false
# A checker does not know what `static_range` is.

import triton
import triton.language as tl


@triton.jit
def load_sum(ptr, mask, stride_part, dtype: tl.constexpr, PARTS: tl.constexpr):
    """A product's numbers, rounded as if it had been stored whole."""
    total = tl.load(ptr, mask=mask, other=0.0).to(tl.float32)
    if PARTS > 0:
        for part in tl.static_range(1, PARTS):
            total += tl.load(ptr + part * stride_part, mask=mask, other=0.0)
        total = total.to(dtype).to(tl.float32)
    return total


@triton.jit
def norm_heads(low_HF, high_HF, weight_low_HF, weight_high_HF, eps, HALF: tl.constexpr, dtype: tl.constexpr):
    """Over the root mean square, rounded, times a weight, rounded."""
    squares_H = tl.sum(low_HF * low_HF, 1) + tl.sum(high_HF * high_HF, 1)
    scale_H1 = (1.0 / tl.sqrt(squares_H / (2 * HALF) + eps))[:, None]
    low_HF = ((low_HF * scale_H1).to(dtype).to(tl.float32) * weight_low_HF).to(dtype).to(tl.float32)
    high_HF = ((high_HF * scale_H1).to(dtype).to(tl.float32) * weight_high_HF).to(dtype).to(tl.float32)
    return low_HF, high_HF


@triton.jit
def rotate_heads(low_HF, high_HF, cos_low_HF, cos_high_HF, sin_low_HF, sin_high_HF):
    """Not yet rounded; the sines are signed."""
    return low_HF * cos_low_HF + high_HF * sin_low_HF, high_HF * cos_high_HF + low_HF * sin_high_HF
