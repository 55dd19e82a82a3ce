"""The dense MLP of a layer, and the shared expert of one with experts.

Legend: T tokens, D hidden, I intermediate.
"""

from functools import partial

from torch import Tensor

from executor.model.layout import MlpSlices
from executor.model.parameters import MlpParameters
from executor.model.projection import project
from kernels.fused import FusedSteps
from kernels.fused.reference import whole
from kernels.lora import LoraBatch, SlotTable


class DenseMlp:
    """`down(silu(gate(x)) * up(x))`, each product with its adapters."""

    def __init__(
        self, weights: MlpParameters, slices: MlpSlices, *, adapters: SlotTable, steps: FusedSteps
    ) -> None:
        self._weights = weights
        self._slices = slices
        self._steps = steps
        self._project = partial(project, adapters=adapters, steps=steps)

    def forward(self, x_TD: Tensor, batch: LoraBatch, *, is_whole: bool = False) -> Tensor:
        """x `[T, D]`. Returns what `FusedSteps.add_norm` can add, or, if `is_whole`, the product itself:
        `[T, D]`.
        """
        gate_up = self._weights.gate_up
        if batch.empty:
            wide_TI = self._steps.linear_silu_mul(x_TD, gate_up.weight, gate_up.bias)
        else:
            gate_up_T2I = self._project(x_TD, gate_up, self._slices.gate_up, batch)
            wide_TI = self._steps.silu_mul(gate_up_T2I, x_TD.dtype)
        down_TD = self._project(wide_TI, self._weights.down, self._slices.down, batch, is_added=not is_whole)
        return whole(down_TD, x_TD.dtype) if is_whole else down_TD
