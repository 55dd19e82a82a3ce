"""The steps in Triton. Semantics: those of `reference`; sums in float32, results rounded where it rounds or
less often.

Legend: as in `reference`.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what `static_range` is.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fused import reference
from kernels.fused.programs import load_sum, norm_heads, rotate_heads
from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.linear import small_batch
from kernels.linear.tiles import Tile, choose
from kernels.sampling.largest import greedy

__all__ = ["add_norm", "greedy", "linear", "linear_silu_mul", "linear_to_add", "rotate_store", "silu_mul"]

_HEADS_OF_A_PROGRAM = 8
_COLUMNS_OF_A_PROGRAM = 1024


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, out_TN: Tensor | None = None) -> Tensor:
    tile = _tile(x_TK, weight_NK)
    if tile is None:
        return reference.linear(x_TK, weight_NK, bias_N, out_TN)
    if out_TN is None:
        out_TN = x_TK.new_empty(len(x_TK), len(weight_NK))
    small_batch.multiply(out_TN, x_TK, weight_NK, bias_N, tile)
    return out_TN


def linear_to_add(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    tile = _tile(x_TK, weight_NK)
    if tile is not None and tile.splits > 1 and bias_N is None:
        return small_batch.parts(x_TK, weight_NK, tile)
    return linear(x_TK, weight_NK, bias_N)


def linear_silu_mul(x_TK: Tensor, weight_2IK: Tensor, bias_2I: Tensor | None) -> Tensor:
    tile = _tile(x_TK, weight_2IK, gated=True)
    if tile is None or tile.splits > 1:
        return silu_mul(linear_to_add(x_TK, weight_2IK, bias_2I), x_TK.dtype)
    out_TI = x_TK.new_empty(len(x_TK), len(weight_2IK) // 2)
    small_batch.multiply(out_TI, x_TK, weight_2IK, bias_2I, tile, gated=True)
    return out_TI


def _tile(x_TK: Tensor, weight_NK: Tensor, *, gated: bool = False) -> Tile | None:
    """None where cuBLAS should compute."""
    return choose(len(x_TK), *weight_NK.shape, gated=gated) if x_TK.dtype.itemsize == 2 else None


def add_norm(x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float) -> Tensor:
    tokens, hidden = x_TD.shape
    out_TD = torch.empty_like(x_TD)
    if not (x_TD.is_contiguous() and (delta_TD is None or delta_TD.is_contiguous())):
        raise ValueError("x and delta must be contiguous")
    if tokens:
        block = 1 << (hidden - 1).bit_length()
        _add_norm_kernel[(tokens,)](
            out_TD,
            x_TD,
            x_TD if delta_TD is None else delta_TD,
            weight_D,
            eps,
            x_TD.numel(),
            HIDDEN=hidden,
            BLOCK=block,
            PARTS=0 if delta_TD is None else max(1, _parts(delta_TD)),
            num_warps=min(16, max(1, block // 512)),
            **overlapping(),
        )
    return out_TD


def rotate_store(
    qkv_TP: Tensor,
    kv_S2Kd: Tensor,
    places_T: Tensor,
    rotary: tuple[Tensor, Tensor],
    positions_T: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Tensor:
    kv_heads, head_dim = kv_S2Kd.shape[2:]
    tokens, all_heads = qkv_TP.shape[-2], qkv_TP.shape[-1] // head_dim
    heads, parts = all_heads - 2 * kv_heads, _parts(qkv_TP)
    out_TP = kv_S2Kd.new_empty(qkv_TP.shape[1:]) if parts else qkv_TP
    cos_Ld, sin_Ld = rotary
    if not (qkv_TP.is_contiguous() and kv_S2Kd.is_contiguous() and cos_Ld.is_contiguous()):
        raise ValueError("qkv, kv and the rotary tables must be contiguous")
    if tokens:
        q_norm, k_norm = norms or (cos_Ld, cos_Ld)
        _rotate_store_kernel[(tokens, -(-all_heads // _HEADS_OF_A_PROGRAM))](
            out_TP,
            qkv_TP,
            kv_S2Kd,
            places_T,
            positions_T,
            cos_Ld,
            sin_Ld,
            q_norm,
            k_norm,
            eps,
            out_TP.numel(),
            HEADS=heads,
            KV_HEADS=kv_heads,
            HALF=head_dim // 2,
            BLOCK_HEADS=_HEADS_OF_A_PROGRAM,
            BLOCK_HALF=1 << (head_dim // 2 - 1).bit_length(),
            NORM=norms is not None,
            PARTS=parts,
            num_warps=4,
            **overlapping(),
        )
    return out_TP.view(tokens, all_heads, head_dim)[:, :heads]


def silu_mul(gate_up_T2I: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    tokens, wide = gate_up_T2I.shape[-2], gate_up_T2I.shape[-1] // 2
    if not gate_up_T2I.is_contiguous():
        raise ValueError("gate_up must be contiguous")
    out_TI = gate_up_T2I.new_empty(tokens, wide, dtype=dtype or gate_up_T2I.dtype)
    if tokens:
        # Tokens are pairs, too, of which there may be more than a grid's other dimensions hold.
        _silu_mul_kernel[(tokens * -(-wide // _COLUMNS_OF_A_PROGRAM),)](
            out_TI,
            gate_up_T2I,
            2 * out_TI.numel(),
            WIDE=wide,
            BLOCK=_COLUMNS_OF_A_PROGRAM,
            PARTS=_parts(gate_up_T2I),
            num_warps=4,
            **overlapping(),
        )
    return out_TI


def _parts(product: Tensor) -> int:
    """How many parts of a product are still to be summed; 0 of one that is whole."""
    return len(product) if product.dim() == 3 else 0


@quick
@triton.jit
def _add_norm_kernel(
    out_ptr,
    x_ptr,
    delta_ptr,
    weight_ptr,
    eps,
    stride_part,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    d_D = tl.arange(0, BLOCK)
    inside_D = d_D < HIDDEN
    place_D = tl.program_id(0).to(tl.int64) * HIDDEN + d_D
    weight_D = tl.load(weight_ptr + d_D, mask=inside_D, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    x_D = tl.load(x_ptr + place_D, mask=inside_D, other=0.0).to(tl.float32)
    if PARTS > 0:
        delta_D = tl.load(delta_ptr + place_D, mask=inside_D, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            delta_D += tl.load(delta_ptr + part * stride_part + place_D, mask=inside_D, other=0.0)
        x_D += delta_D.to(x_ptr.dtype.element_ty).to(tl.float32)
        rounded_D = x_D.to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + place_D, rounded_D, mask=inside_D)
        x_D = rounded_D.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x_D * x_D, 0) / HIDDEN + eps)
    out_D = (x_D * scale).to(x_ptr.dtype.element_ty).to(tl.float32) * weight_D
    tl.store(out_ptr + place_D, out_D.to(out_ptr.dtype.element_ty), mask=inside_D)


@quick
@triton.jit
def _rotate_store_kernel(
    out_ptr,
    qkv_ptr,
    kv_ptr,
    places_ptr,
    positions_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    stride_part,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NORM: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program has some heads of one token, as two halves, since a rotation pairs them."""
    token = tl.program_id(0).to(tl.int64)
    h_H = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    d_D = tl.arange(0, BLOCK_HALF)
    is_query_H, is_value_H = h_H < HEADS, h_H >= HEADS + KV_HEADS
    inside_HD = (h_H < HEADS + 2 * KV_HEADS)[:, None] & (d_D < HALF)[None, :]
    wait_for_inputs(PDL)
    place_HD = token * ((HEADS + 2 * KV_HEADS) * 2 * HALF) + (h_H * (2 * HALF))[:, None] + d_D[None, :]
    dtype = out_ptr.dtype.element_ty
    low_HD = load_sum(qkv_ptr + place_HD, inside_HD, stride_part, dtype, PARTS)
    high_HD = load_sum(qkv_ptr + place_HD + HALF, inside_HD, stride_part, dtype, PARTS)
    value_low_HD, value_high_HD = low_HD, high_HD
    if NORM:
        half_D = d_D < HALF
        q_low_D = tl.load(q_norm_ptr + d_D, mask=half_D, other=0.0).to(tl.float32)
        q_high_D = tl.load(q_norm_ptr + HALF + d_D, mask=half_D, other=0.0).to(tl.float32)
        k_low_D = tl.load(k_norm_ptr + d_D, mask=half_D, other=0.0).to(tl.float32)
        k_high_D = tl.load(k_norm_ptr + HALF + d_D, mask=half_D, other=0.0).to(tl.float32)
        weight_low_HD = tl.where(is_query_H[:, None], q_low_D[None, :], k_low_D[None, :])
        weight_high_HD = tl.where(is_query_H[:, None], q_high_D[None, :], k_high_D[None, :])
        low_HD, high_HD = norm_heads(low_HD, high_HD, weight_low_HD, weight_high_HD, eps, HALF, dtype)
    position = tl.load(positions_ptr + token).to(tl.int64)
    rotary_D = position * (2 * HALF) + d_D
    cos_low_D = tl.load(cos_ptr + rotary_D, mask=d_D < HALF, other=0.0).to(tl.float32)
    cos_high_D = tl.load(cos_ptr + rotary_D + HALF, mask=d_D < HALF, other=0.0).to(tl.float32)
    sin_low_D = tl.load(sin_ptr + rotary_D, mask=d_D < HALF, other=0.0).to(tl.float32)
    sin_high_D = tl.load(sin_ptr + rotary_D + HALF, mask=d_D < HALF, other=0.0).to(tl.float32)
    new_low_HD, new_high_HD = rotate_heads(
        low_HD, high_HD, cos_low_D[None, :], cos_high_D[None, :], sin_low_D[None, :], sin_high_D[None, :]
    )
    new_low_HD = tl.where(is_value_H[:, None], value_low_HD, new_low_HD).to(dtype)
    new_high_HD = tl.where(is_value_H[:, None], value_high_HD, new_high_HD).to(dtype)
    query_HD = inside_HD & is_query_H[:, None]
    tl.store(out_ptr + place_HD, new_low_HD, mask=query_HD)
    tl.store(out_ptr + place_HD + HALF, new_high_HD, mask=query_HD)
    # Keys of all heads come before values of all heads, in the cache as in qkv.
    place = tl.load(places_ptr + token).to(tl.int64)
    stored_HD = inside_HD & (h_H >= HEADS)[:, None] & (place >= 0)
    kv_HD = kv_ptr + place * (4 * KV_HEADS * HALF) + ((h_H - HEADS) * (2 * HALF))[:, None] + d_D[None, :]
    tl.store(kv_HD, new_low_HD, mask=stored_HD)
    tl.store(kv_HD + HALF, new_high_HD, mask=stored_HD)


@quick
@triton.jit
def _silu_mul_kernel(
    out_ptr,
    gate_up_ptr,
    stride_part,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    blocks: tl.constexpr = (WIDE + BLOCK - 1) // BLOCK
    i_I = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside_I = i_I < WIDE
    token = (tl.program_id(0) // blocks).to(tl.int64)
    wait_for_inputs(PDL)
    dtype = out_ptr.dtype.element_ty
    gate_ptr = gate_up_ptr + token * (2 * WIDE) + i_I
    gate_I = load_sum(gate_ptr, inside_I, stride_part, dtype, PARTS)
    up_I = load_sum(gate_ptr + WIDE, inside_I, stride_part, dtype, PARTS)
    out_I = gate_I / (1.0 + tl.exp(-gate_I)) * up_I
    tl.store(out_ptr + token * WIDE + i_I, out_I.to(out_ptr.dtype.element_ty), mask=inside_I)
