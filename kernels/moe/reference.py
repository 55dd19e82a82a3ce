"""What routing and experts compute, pair by pair. Read it as the definition; nothing serves with it.

Legend: T tokens, E experts, X experts of a token, P = T x X pairs (p = t * X + x), D hidden, I an expert's
width.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels.moe.interface import Adapt, ExpertWeights
from kernels.moe.routing import RouterForm, Routing


def route(logits_TE: Tensor, *, top_k: int, form: RouterForm) -> Routing:
    """Semantics: those of `routing.route`."""
    shares_TE = logits_TE.float().softmax(dim=-1)
    weights_TX, experts_TX = shares_TE.topk(top_k, dim=-1)
    if form is RouterForm.NORMALISED:
        weights_TX = weights_TX / weights_TX.sum(dim=-1, keepdim=True)
    return Routing(experts_TX=experts_TX.int(), weights_TX=weights_TX)


def experts(x_TD: Tensor, routing: Routing, weights: ExpertWeights, *, adapt: Adapt | None) -> Tensor:
    """Each token through its experts, added up by their weights.

    Semantics: for each pair p of token t and expert e,

        y[p] = gate_up[e] @ x[t]                then adapt.gate_up(y, x, routing)
        wide[p] = silu(gate) * up               the halves of y[p]
        z[p] = down[e] @ wide[p]                then adapt.down(z, wide, routing)
        out[t] = sum over x of weights[t, x] * z[p]

    each of y, wide and z rounded to x's dtype, the sum over x in float32 and rounded once. Pairs of expert
    -1 add nothing.

    Shapes: x `[T, D]`; returns `[T, D]` in x's dtype.
    """
    tokens, top_k = routing.experts_TX.shape
    pairs = [(p, e) for p, e in enumerate(routing.experts_TX.flatten().tolist()) if e >= 0]
    y_P2I = x_TD.new_zeros(tokens * top_k, weights.gate_up_E2ID.shape[1])
    for p, e in pairs:
        y_P2I[p] = (weights.gate_up_E2ID[e].float() @ x_TD[p // top_k].float()).to(x_TD.dtype)
    if adapt is not None:
        adapt.gate_up(y_P2I, x_TD, routing)
    gate_PI, up_PI = y_P2I.chunk(2, dim=-1)
    wide_PI = (silu(gate_PI.float()) * up_PI.float()).to(x_TD.dtype)
    z_PD = x_TD.new_zeros(tokens * top_k, x_TD.shape[1])
    for p, e in pairs:
        z_PD[p] = (weights.down_EDI[e].float() @ wide_PI[p].float()).to(x_TD.dtype)
    if adapt is not None:
        adapt.down(z_PD, wide_PI, routing)
    out_TD = torch.zeros(x_TD.shape, dtype=torch.float32)
    for p, _ in pairs:
        t, x = divmod(p, top_k)
        out_TD[t] += routing.weights_TX[t, x] * z_PD[p].float()
    return out_TD.to(x_TD.dtype)
