"""LoRA on the experts of a flat batch in which any token may belong to any adapter.

Adapter and expert together are a virtual expert: slot s's LoRA on expert e has the slices `first_slice + 3 e`
(gate), `+ 1` (up) and `+ 2` (down). They are plain LoRA: no gain, no shift, no weight of their own. Several
of them may point at the same place, where an adapter shares a matrix among experts.

`ExpertLora` hooks into any base; `experts` computes base and LoRA together where that saves launches.
`reference` defines what is computed.
"""

from torch import Tensor

from kernels.moe import ExpertWeights, Pairs, Routing
from kernels.moe import experts as base_experts
from kernels.moe_lora.cpu import apply_down, apply_gate_up
from kernels.moe_lora.hooks import ExpertLora

__all__ = ["ExpertLora", "apply_down", "apply_gate_up", "experts"]


def experts(
    x_TD: Tensor, routing: Routing, weights: ExpertWeights, *, lora: ExpertLora, triton: bool
) -> Tensor | Pairs:
    """What `kernels.moe.experts` computes with these hooks."""
    if triton and lora.batch.tiles is not None:
        from kernels.moe_lora import fused  # imports Triton, which the CPU does without

        if 0 < lora.batch.tiles.rank <= fused.MOST_RANK:
            return fused.experts(x_TD, routing, weights, lora=lora)
    return base_experts(x_TD, routing, weights, adapt=lora, triton=triton)
