"""Experts in plain torch: two matrix products per expert that a token has chosen. Semantics: those of
`reference`.

Legend: T tokens, E experts, X experts of a token, P = T x X pairs (p = t * X + x), G pairs of one expert, D
hidden, I an expert's width.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from kernels.moe.interface import Adapt, ExpertWeights
from kernels.moe.routing import Routing


def experts(x_TD: Tensor, routing: Routing, weights: ExpertWeights, *, adapt: Adapt | None) -> Tensor:
    """Each token through its experts, added up by their weights."""
    experts_TX, weights_TX = routing
    tokens, top_k = experts_TX.shape
    groups = by_key(experts_TX.flatten().numpy())
    y_P2I = x_TD.new_zeros(tokens * top_k, weights.gate_up_E2ID.shape[1])
    for expert, pairs_G in groups:
        x_GD = x_TD.index_select(0, pairs_G // top_k)
        y_P2I.index_copy_(0, pairs_G, linear(x_GD, weights.gate_up_E2ID[expert]))
    if adapt is not None:
        adapt.gate_up(y_P2I, x_TD, routing)
    gate_PI, up_PI = y_P2I.chunk(2, dim=-1)
    wide_PI = silu(gate_PI).mul_(up_PI)
    z_PD = x_TD.new_zeros(tokens * top_k, x_TD.shape[1])
    for expert, pairs_G in groups:
        z_PD.index_copy_(0, pairs_G, linear(wide_PI.index_select(0, pairs_G), weights.down_EDI[expert]))
    if adapt is not None:
        adapt.down(z_PD, wide_PI, routing)
    shares_T1X = weights_TX.masked_fill(experts_TX < 0, 0).unsqueeze(1)
    z_TXD = z_PD.view(tokens, top_k, x_TD.shape[1]).float()
    return torch.bmm(shares_T1X, z_TXD).squeeze(1).to(x_TD.dtype)


def by_key(keys_P: np.ndarray) -> list[tuple[int, Tensor]]:
    """Each key that is not negative, with the pairs that have it: int64 `[G]`, in order."""
    order_P = np.argsort(keys_P, kind="stable")
    sorted_P = keys_P[order_P]
    first = int(np.searchsorted(sorted_P, 0))
    order_P, sorted_P = order_P[first:], sorted_P[first:]
    if not len(order_P):
        return []
    starts = np.flatnonzero(np.concatenate(([True], np.diff(sorted_P) > 0)))
    sizes = np.diff(np.append(starts, len(order_P))).tolist()
    groups = torch.from_numpy(order_P).split(sizes)
    return list(zip(sorted_P[starts].tolist(), groups, strict=True))
