"""A batch's adapters on the experts of one layer, as any base calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kernels.lora import LoraBatch, SlotTable
from kernels.moe.routing import Routing
from kernels.moe_lora import cpu

if TYPE_CHECKING:
    from kernels.moe_lora.gpu import Runs


class ExpertLora:
    """The hooks of `kernels.moe.Adapt`, for one forward: what gate_up sorts, down uses again."""

    def __init__(self, *, first_slice: int, experts: int, batch: LoraBatch, table: SlotTable) -> None:
        """`experts` is how many the layer has, `first_slice` the gate of the first."""
        self.first_slice = first_slice
        self.experts = experts
        self.batch = batch
        self.table = table
        self._runs: Runs | None = None

    def gate_up(self, y_P2I: Tensor, x_TD: Tensor, routing: Routing) -> None:
        """See `reference.apply_gate_up`."""
        if self.batch.tiles is None:
            cpu.apply_gate_up(
                y_P2I, x_TD, routing, first_slice=self.first_slice, batch=self.batch, table=self.table
            )
            return
        from kernels.moe_lora import gpu  # imports Triton, which the CPU does without

        self._runs = self.runs(routing)
        gpu.apply_gate_up(
            y_P2I, x_TD, self._runs, first_slice=self.first_slice, table=self.table, ready=False
        )

    def down(self, y_PD: Tensor, wide_PI: Tensor, routing: Routing) -> None:
        """See `reference.apply_down`."""
        if self.batch.tiles is None:
            cpu.apply_down(
                y_PD, wide_PI, routing, first_slice=self.first_slice, batch=self.batch, table=self.table
            )
            return
        from kernels.moe_lora import gpu

        ready = self._runs is not None
        runs = self._runs or self.runs(routing)
        gpu.apply_down(y_PD, wide_PI, runs, first_slice=self.first_slice, table=self.table, ready=ready)

    @property
    def rank(self) -> int:
        """The largest padded rank of a batch with tiles."""
        assert self.batch.tiles is not None
        return self.batch.tiles.rank

    @property
    def slots(self) -> int:
        """The most slots that a batch with tiles may have."""
        assert self.batch.tiles is not None
        return min(self.table.slots, self.batch.tiles.count)

    def slots_of(self, routing: Routing) -> Tensor:
        """Each token's slot, int32 `[T]`, of a batch with tiles."""
        from kernels.moe_lora import gpu

        assert self.batch.tiles is not None
        if self.batch.slots_T is not None:
            return self.batch.slots_T
        return gpu.slots_of(self.batch.tiles, len(routing.experts_TX))

    def runs(self, routing: Routing) -> Runs:
        """Of a batch with tiles; see `gpu.runs_of`."""
        from kernels.moe_lora import gpu

        return gpu.runs_of(
            routing, self.experts, slots_T=self.slots_of(routing), slots=self.slots, rank=self.rank
        )
