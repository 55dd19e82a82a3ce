"""`silu(gate) * up` at the end of a product whose weights are `[2 I, K]`, gate before up.

A tile's rows are of both, so that no other program has to be waited for. Legend: as in `small_batch`; I wide.
"""

import triton
import triton.language as tl


@triton.jit
def gate_and_up(first, wide, ROWS: tl.constexpr):
    """Where ROWS // 2 rows of gate from `first` on, and as many of up, are: in turns of eight, which is how
    tensor cores give both rows of a pair to one thread. Rows beyond the last are the last.
    """
    r_N = tl.arange(0, ROWS)
    i_N = first + r_N // 16 * 8 + r_N % 8
    return tl.minimum(i_N, wide - 1) + r_N // 8 % 2 * wide


@triton.jit
def silu_mul(product_NT, dtype: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """`[ROWS // 2, TOKENS]`, the product's rows being those of `gate_and_up`; rounded where a product that is
    stored would be.
    """
    turns = tl.reshape(product_NT.to(dtype), (ROWS // 16, 2, 8, TOKENS))
    gate, up = tl.split(tl.permute(turns, (0, 2, 3, 1)))
    return tl.reshape(_silu_mul(gate.to(tl.float32), up.to(tl.float32)), (ROWS // 2, TOKENS))


@triton.jit
def silu_mul_halves(product_N, dtype: tl.constexpr, ROWS: tl.constexpr):
    """`[ROWS // 2]`; the product's first half is gate, its second up."""
    halves_2I = tl.reshape(product_N.to(dtype).to(tl.float32), (2, ROWS // 2))
    gate_I, up_I = tl.split(tl.trans(halves_2I))
    return _silu_mul(gate_I, up_I)


@triton.jit
def _silu_mul(gate, up):
    return gate / (1.0 + tl.exp(-gate)) * up
