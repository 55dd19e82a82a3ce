"""The dense MLP of a layer, and the shared expert of one with experts.

Legend: T tokens, D hidden, I intermediate.
"""

from functools import partial

from torch import Tensor

from executor.model.layout import MlpSlices
from executor.model.parameters import MlpParameters
from executor.model.projection import project, project_gated
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
        self._project_gated = partial(project_gated, adapters=adapters, steps=steps)
        self._project = partial(project, adapters=adapters, steps=steps)

    def forward(self, x_TD: Tensor, batch: LoraBatch, *, is_whole: bool = False) -> Tensor:
        """x `[T, D]`. Returns what `FusedSteps.add_norm` can add, or, if `is_whole`, the product itself:
        `[T, D]`.
        """
        weights, slices = self._weights, self._slices
        wide_TI = self._project_gated(x_TD, weights.gate_up, slices.gate_up, batch)
        down_TD = self._project(wide_TI, weights.down, slices.down, batch, is_added=not is_whole)
        return whole(down_TD, x_TD.dtype) if is_whole else down_TD
