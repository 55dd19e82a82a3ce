"""The dense MLP of a layer, and the shared expert of one with experts.

Legend: T tokens, D hidden, I intermediate.
"""

from torch import Tensor

from executor.model.layout import MlpSlices
from executor.model.parameters import MlpParameters
from kernels import lora
from kernels.fused import FusedSteps
from kernels.lora import LoraBatch, SlotTable


class DenseMlp:
    """`down(silu(gate(x)) * up(x))`, each product with its adapters."""

    def __init__(
        self, weights: MlpParameters, slices: MlpSlices, *, adapters: SlotTable, steps: FusedSteps
    ) -> None:
        self._weights = weights
        self._slices = slices
        self._adapters = adapters
        self._steps = steps

    def forward(self, x_TD: Tensor, batch: LoraBatch, *, whole: bool = False) -> Tensor:
        """x `[T, D]`. Returns what `FusedSteps.add_norm` can add, or, if `whole`, the product itself:
        `[T, D]`.
        """
        gate_up, down = self._weights.gate_up, self._weights.down
        gate_up_T2I = self._steps.linear(x_TD, gate_up.weight, gate_up.bias)
        if not batch.empty:
            lora.apply(gate_up_T2I, x_TD, slices=self._slices.gate_up, batch=batch, table=self._adapters)
        wide_TI = self._steps.silu_mul(gate_up_T2I)
        # Adapters want a product whole; the norm that follows can sum its parts.
        product = self._steps.linear if whole or not batch.empty else self._steps.linear_to_add
        down_TD = product(wide_TI, down.weight, down.bias)
        if not batch.empty:
            lora.apply(down_TD, wide_TI, slices=self._slices.down, batch=batch, table=self._adapters)
        return down_TD
