"""Random numbers as a function of (seed, position, token) alone: same on every device, in any batch.

The generator is SplitMix64 (Steele, Lea and Flood 2014), a counter put through a mixing function, so that
no state is kept and any element can be computed by itself. Integers are int64 that wrap around.

Legend: N rows, V vocabulary.
"""

import torch
from torch import Tensor

_INT64 = 1 << 64


def _signed(value: int) -> int:
    return value - _INT64 if value >= _INT64 // 2 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def gumbel(seeds_N: Tensor, positions_N: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise, float32 `[N, V]`; adding it to logits and taking the largest samples their
    softmax.

    seeds int64 (the bits of a uint64) and positions int64, both `[N]`.
    """
    keys_N = _mix(_mix(seeds_N + _GOLDEN) + positions_N * _GOLDEN)
    counters_V = torch.arange(1, vocab_size + 1, device=seeds_N.device) * _GOLDEN
    bits_NV = _shift_right(_mix(keys_N[:, None] + counters_V), 11)
    # 53 bits into a float32 keep their relative precision near 0, and it is the smallest that win.
    uniform_NV = bits_NV.float().add_(0.5).mul_(2.0**-53).clamp_(max=1 - 2.0**-24)
    return uniform_NV.neg_().log1p_().neg_().log_().neg_()


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift; int64's own copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
