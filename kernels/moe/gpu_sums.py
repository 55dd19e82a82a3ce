"""Each token's experts added up, and what comes next in a decoder in the same launch.

Semantics: `gpu_products.add_up`, then `kernels.fused.reference.add_norm`, bit for bit.

Legend: T tokens, X experts of a token, P = T x X pairs, D hidden.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.moe.routing import Routing


def add_norm(x_TD: Tensor, y_PD: Tensor, routing: Routing, weight_D: Tensor, eps: float) -> Tensor:
    """Add each token's pairs times their weights to x, in place; returns `x / rms(x) * weight`. Pairs of
    expert -1 are not read. Raises ValueError for what is not contiguous.
    """
    tokens, hidden = x_TD.shape
    out_TD = torch.empty_like(x_TD)
    if not (x_TD.is_contiguous() and y_PD.is_contiguous() and routing.weights_TX.is_contiguous()):
        raise ValueError("x and what is added up must be contiguous")
    if tokens:
        block = 1 << (hidden - 1).bit_length()
        _add_norm_kernel[(tokens,)](
            out_TD,
            x_TD,
            y_PD,
            routing.experts_TX,
            routing.weights_TX,
            weight_D,
            eps,
            HIDDEN=hidden,
            TOP_K=routing.experts_TX.shape[1],
            BLOCK=block,
            num_warps=min(16, max(1, block // 512)),
            **overlapping(),
        )
    return out_TD


@quick
@triton.jit
def _add_norm_kernel(
    out_ptr,
    x_ptr,
    y_ptr,
    experts_ptr,
    weights_ptr,
    norm_ptr,
    eps,
    HIDDEN: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    d_D = tl.arange(0, BLOCK)
    token = tl.program_id(0).to(tl.int64)
    inside_D, place_D = d_D < HIDDEN, token * HIDDEN + d_D
    norm_D = tl.load(norm_ptr + d_D, mask=inside_D, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    x_D = tl.load(x_ptr + place_D, mask=inside_D, other=0.0).to(tl.float32)
    acc_D = tl.zeros([BLOCK], tl.float32)
    for x in tl.static_range(TOP_K):
        pair = token * TOP_K + x
        is_any = tl.load(experts_ptr + pair) >= 0
        y_D = tl.load(y_ptr + pair * HIDDEN + d_D, mask=inside_D & is_any, other=0.0).to(tl.float32)
        acc_D += tl.where(is_any, tl.load(weights_ptr + pair), 0.0) * y_D
    rounded_D = (x_D + acc_D.to(x_ptr.dtype.element_ty).to(tl.float32)).to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + place_D, rounded_D, mask=inside_D)
    x_D = rounded_D.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x_D * x_D, 0) / HIDDEN + eps)
    out_D = (x_D * scale).to(x_ptr.dtype.element_ty).to(tl.float32) * norm_D
    tl.store(out_ptr + place_D, out_D.to(out_ptr.dtype.element_ty), mask=inside_D)
