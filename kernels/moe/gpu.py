"""Experts in Triton. Semantics: those of `reference`; results rounded where it rounds or less often.

Legend: T tokens, E experts, X experts of a token, P = T x X pairs, D hidden, I an expert's width.
"""

from torch import Tensor

from kernels.moe import gpu_products, gpu_vectors
from kernels.moe.gpu_routing import Arrangement, arrange, route
from kernels.moe.interface import Adapt, ExpertWeights, Pairs
from kernels.moe.routing import Routing
from kernels.moe.tiles import Tiles, choose

__all__ = ["arrange_for", "experts", "route"]


def experts(x_TD: Tensor, routing: Routing, weights: ExpertWeights, *, adapt: Adapt | None) -> Tensor | Pairs:
    """See `kernels.moe.experts`. Without `adapt`, the activation comes with the first product."""
    if adapt is None and len(x_TD) <= gpu_vectors.MOST_TOKENS:
        return gpu_vectors.experts(x_TD, routing, weights)
    tiles, arrangement = arrange_for(routing, len(weights.down_EDI))
    if adapt is None:
        wide_PI = gpu_products.gate_up(
            x_TD, weights.gate_up_E2ID, routing, arrangement, tiles.gate_up, activated=True
        )
        y_PD = gpu_products.down(wide_PI, weights.down_EDI, routing, arrangement, tiles.down)
    else:
        y_P2I = gpu_products.gate_up(
            x_TD, weights.gate_up_E2ID, routing, arrangement, tiles.gate_up, activated=False
        )
        adapt.gate_up(y_P2I, x_TD, routing)
        wide_PI = gpu_products.silu_mul(y_P2I)
        y_PD = gpu_products.down(wide_PI, weights.down_EDI, routing, arrangement, tiles.down)
        adapt.down(y_PD, wide_PI, routing)
    return Pairs(y_PD, routing)


def arrange_for(routing: Routing, experts: int) -> tuple[Tiles, Arrangement | None]:
    """How to cut, and the tiles; none for so few tokens that their experts hardly meet."""
    tokens, top_k = routing.experts_TX.shape
    tiles = choose(tokens, top_k, experts)
    return tiles, None if tokens <= gpu_vectors.MOST_TOKENS else arrange(
        routing, experts, block=tiles.down.pairs
    )
