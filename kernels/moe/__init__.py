"""The experts of one layer over a flat batch in which every token has chosen its own.

`route` chooses, `experts` computes. What comes between their products (LoRA, and whatever else changes one
expert's output) is hooked in by `Adapt`, which knows nothing of how the base computes; `reference` defines
what they compute.
"""

from torch import Tensor

from kernels.moe import cpu
from kernels.moe.interface import Adapt, ExpertWeights
from kernels.moe.routing import RouterForm, Routing, route

__all__ = ["Adapt", "ExpertWeights", "RouterForm", "Routing", "experts", "route"]


def experts(
    x_TD: Tensor, routing: Routing, weights: ExpertWeights, *, adapt: Adapt | None, triton: bool
) -> Tensor:
    """Each token through its experts: `[T, D]` in x's dtype; see `reference.experts`.

    `triton`: by Triton's kernels, which wait for nothing on the host; else by plain torch.
    """
    if not triton:
        return cpu.experts(x_TD, routing, weights, adapt=adapt)
    from kernels.moe import gpu  # imports Triton, which the CPU does without

    return gpu.experts(x_TD, routing, weights, adapt=adapt)
