"""The steps in plain torch: the definition of what `gpu` computes, and what serves on the CPU.

Legend: T tokens, N rows of logits, D hidden, H query heads, K KV heads, d head dimension, P = (H + 2 K) x d,
I intermediate, V vocabulary, S tokens of a KV cache, L positions; of a linear layer, K in and N out features.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import silu


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, out_TN: Tensor | None = None) -> Tensor:
    """Semantics: `x @ weight.T + bias`, summed in float32 at least, to `out_TN` where that is given."""
    if out_TN is None:
        return torch_linear(x_TK, weight_NK, bias_N)
    if bias_N is None:
        return torch.mm(x_TK, weight_NK.t(), out=out_TN)
    return torch.addmm(bias_N, x_TK, weight_NK.t(), out=out_TN)


def linear_to_add(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """What `add_norm` takes as delta: `[T, N]`, or float32 `[C, T, N]` that is still to be summed."""
    return linear(x_TK, weight_NK, bias_N)


def whole(product: Tensor, dtype: torch.dtype) -> Tensor:
    """A product `[T, N]` of what may still be float32 parts `[C, T, N]` of it, to be summed and rounded."""
    return product.sum(0).to(dtype) if product.dim() == 3 else product


def add_norm(x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float) -> Tensor:
    """Semantics: `x += delta` in place, then `x / rms(x) * weight` of the sum. A delta of three dimensions is
    summed over the first and rounded to x's dtype before.

    Root-mean-square norm (Zhang and Sennrich 2019), in float32, rounded to x's dtype before the weight.
    """
    if delta_TD is not None:
        x_TD.add_(whole(delta_TD, x_TD.dtype))
    return rms_norm(x_TD, weight_D, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x `[..., D]`, weight broadcastable to it."""
    wide = x.float()
    scale = wide.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype) * weight


def rotate_store(
    qkv_TP: Tensor,
    kv_S2Kd: Tensor,
    places_T: Tensor,
    rotary: tuple[Tensor, Tensor],
    positions_T: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Tensor:
    """Norm and rotate query and key heads, store keys and values, return the queries `[T, H, d]`.

    Semantics: each head of q and k is normed with `norms` (weights `[d]` of q and of k), where there are
    any, then becomes `x * cos[position] + roll(x, d / 2) * sin[position]`; kv[place] = (k, v). A place of -1
    stores nothing.

    Shapes: qkv `[T, P]`, overwritten, or its parts; kv `[S, 2, K, d]`; places and positions integers `[T]`;
    cosines and signed sines `[L, d]` in the compute dtype.
    """
    kv_heads, head_dim = kv_S2Kd.shape[2:]
    qkv_TP = whole(qkv_TP, kv_S2Kd.dtype)
    heads_THd = qkv_TP.view(len(qkv_TP), -1, head_dim)
    qk, v_TKd = heads_THd[:, :-kv_heads], heads_THd[:, -kv_heads:]
    heads = qk.shape[1] - kv_heads
    if norms is not None:
        # One norm over query and key heads together, each with its own weight.
        weight = torch.cat((norms[0].expand(heads, -1), norms[1].expand(kv_heads, -1)))
        qk = rms_norm(qk, weight, eps)
    cos_Td, sin_Td = (table.index_select(0, positions_T) for table in rotary)
    qk = rotate(qk, cos_Td, sin_Td)
    stored = torch.stack((qk[:, heads:], v_TKd), dim=1)
    if (places_T < 0).any():
        kept = places_T >= 0
        places_T, stored = places_T[kept], stored[kept]
    kv_S2Kd.index_copy_(0, places_T.long(), stored)
    return qk[:, :heads]


def rotate(x_THd: Tensor, cos_Td: Tensor, sin_Td: Tensor) -> Tensor:
    """`x * cos + roll(x, d / 2) * sin`, the same for all heads of a token."""
    rolled_THd = x_THd.roll(x_THd.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_THd * cos_Td[:, None], rolled_THd, sin_Td[:, None])


def silu_mul(gate_up_T2I: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Semantics: `silu(gate) * up`, the halves of the last dimension; of parts, that of their sum in
    `dtype`, which is otherwise gate_up's.
    """
    gate_TI, up_TI = whole(gate_up_T2I, dtype or gate_up_T2I.dtype).chunk(2, dim=-1)
    return silu(gate_TI).mul_(up_TI)


def linear_silu_mul(x_TK: Tensor, weight_2IK: Tensor, bias_2I: Tensor | None) -> Tensor:
    """Semantics: `silu_mul(linear(x, weight, bias))`, `[T, I]`, with its roundings."""
    return silu_mul(linear(x_TK, weight_2IK, bias_2I))


def greedy(logits_NV: Tensor) -> Tensor:
    """Semantics: the index of each row's largest logit, the first of equals; int64 `[N]`."""
    return logits_NV.argmax(dim=-1)
