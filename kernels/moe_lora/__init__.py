"""LoRA on the experts of a flat batch in which any token may belong to any adapter.

Both calls change one of the experts' products in place, for the hooks of `kernels.moe.Adapt`. Adapter and
expert together are a virtual expert: slot s's LoRA on expert e has the slices `first_slice + 3 e` (gate), `+
1` (up) and `+ 2` (down). They are plain LoRA: no gain, no shift, no weight of their own. Several of them may
point at the same place, where an adapter shares a matrix among experts. `reference` defines what is computed.
"""

from torch import Tensor

from kernels.lora import LoraBatch, SlotTable
from kernels.moe.routing import Routing
from kernels.moe_lora import cpu

__all__ = ["apply_down", "apply_gate_up"]


def apply_gate_up(
    y_P2I: Tensor, x_TD: Tensor, routing: Routing, *, first_slice: int, batch: LoraBatch, table: SlotTable
) -> None:
    """Add each pair's adapter to its expert's gate and up, in place; see `reference.apply_gate_up`."""
    if batch.tiles is None:
        cpu.apply_gate_up(y_P2I, x_TD, routing, first_slice=first_slice, batch=batch, table=table)
        return
    from kernels.moe_lora import gpu  # imports Triton, which the CPU does without

    gpu.apply_gate_up(y_P2I, x_TD, routing, first_slice=first_slice, tiles=batch.tiles, table=table)


def apply_down(
    y_PD: Tensor, wide_PI: Tensor, routing: Routing, *, first_slice: int, batch: LoraBatch, table: SlotTable
) -> None:
    """Add each pair's adapter to its expert's down, in place; see `reference.apply_down`."""
    if batch.tiles is None:
        cpu.apply_down(y_PD, wide_PI, routing, first_slice=first_slice, batch=batch, table=table)
        return
    from kernels.moe_lora import gpu

    gpu.apply_down(y_PD, wide_PI, routing, first_slice=first_slice, tiles=batch.tiles, table=table)
