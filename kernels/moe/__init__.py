"""The experts of one layer over a flat batch in which every token has chosen its own.

`route` chooses, `experts` computes. What comes between their products (LoRA, and whatever else changes one
expert's output) is hooked in by `Adapt`, which knows nothing of how the base computes; `reference` defines
what they compute.
"""

from torch import Tensor

from kernels.moe import cpu, routing
from kernels.moe.interface import Adapt, ExpertWeights, Pairs
from kernels.moe.routing import RouterForm, Routing

__all__ = [
    "Adapt",
    "ExpertWeights",
    "Pairs",
    "RouterForm",
    "Routing",
    "add_norm",
    "add_up",
    "experts",
    "route",
]


def route(
    logits_TE: Tensor,
    *,
    top_k: int,
    form: RouterForm,
    places_T: Tensor | None = None,
    triton: bool = False,
) -> Routing:
    """Choose each token's experts; see `routing.route`. Where `places`, integers `[T]`, are negative, a token
    is padding and has none.
    """
    if triton:
        from kernels.moe import gpu_routing  # imports Triton, which the CPU does without

        return gpu_routing.route(logits_TE, top_k=top_k, form=form, places_T=places_T)
    chosen = routing.route(logits_TE, top_k=top_k, form=form)
    if places_T is None:
        return chosen
    return chosen._replace(experts_TX=chosen.experts_TX.masked_fill((places_T < 0)[:, None], -1))


def experts(
    x_TD: Tensor, routing: Routing, weights: ExpertWeights, *, adapt: Adapt | None, triton: bool
) -> Tensor | Pairs:
    """Each token through its experts: `[T, D]` in x's dtype, or what `add_up` makes that of; see
    `reference.experts`.

    `triton`: by Triton's kernels, which wait for nothing on the host; else by plain torch.
    """
    if not triton:
        return cpu.experts(x_TD, routing, weights, adapt=adapt)
    from kernels.moe import gpu  # imports Triton, which the CPU does without

    return gpu.experts(x_TD, routing, weights, adapt=adapt)


def add_up(found: Tensor | Pairs) -> Tensor:
    """What `experts` returns, `[T, D]`."""
    if not isinstance(found, Pairs):
        return found
    from kernels.moe import gpu_products

    return gpu_products.add_up(found.y_PD, found.routing)


def add_norm(x_TD: Tensor, pairs: Pairs, weight_D: Tensor, eps: float) -> Tensor:
    """`kernels.fused.FusedSteps.add_norm` of pairs that are added up at once."""
    from kernels.moe import gpu_sums

    return gpu_sums.add_norm(x_TD, pairs.y_PD, pairs.routing, weight_D, eps)
