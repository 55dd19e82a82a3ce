"""The experts of a layer, in a dense MLP's place: a router, the experts it chooses, and perhaps a shared one.

Legend: T tokens, E experts, X experts of a token, P = T x X pairs, D hidden, I an expert's width.
"""

from torch import Tensor

from executor.model.expert_options import ExpertsConfig
from executor.model.layout import ExpertSlices
from executor.model.mlp import DenseMlp
from executor.model.parameters import ExpertParameters
from kernels import lora, moe, moe_lora
from kernels.fused import FusedSteps
from kernels.lora import NO_LORA, LoraBatch, PackedSlice, SlotTable
from kernels.moe import Pairs
from kernels.moe_lora import ExpertLora


class SparseMlp:
    """`sum of weight x expert(x)` over a token's experts, `+ sigmoid(shared_gate(x)) x shared(x)`."""

    def __init__(
        self,
        config: ExpertsConfig,
        weights: ExpertParameters,
        slices: ExpertSlices,
        *,
        adapters: SlotTable,
        steps: FusedSteps,
        triton: bool,
    ) -> None:
        self._config = config
        self._weights = weights
        self._slices = slices
        self._adapters = adapters
        self._steps = steps
        self._triton = triton
        self._shared: DenseMlp | None = None
        if weights.shared is not None and slices.shared is not None:
            self._shared = DenseMlp(weights.shared, slices.shared, adapters=adapters, steps=steps)

    def forward(self, x_TD: Tensor, batch: LoraBatch, *, places_T: Tensor) -> Tensor | Pairs:
        """x `[T, D]`; returns what `moe.experts` does. Tokens whose place in the KV cache is negative go to
        no expert.
        """
        adapted = batch if batch.touches_routers else NO_LORA
        logits_TE = self._linear(x_TD, self._weights.router, self._slices.router, adapted)
        routing = moe.route(
            logits_TE,
            top_k=self._config.chosen,
            form=self._config.form,
            places_T=places_T,
            triton=self._triton,
        )
        weights = self._weights.experts
        if batch.empty:
            out_TD = moe.experts(x_TD, routing, weights, adapt=None, triton=self._triton)
        else:
            adapters = ExpertLora(
                first_slice=self._slices.first_expert,
                experts=len(weights.down_EDI),
                batch=batch,
                table=self._adapters,
            )
            out_TD = moe_lora.experts(x_TD, routing, weights, lora=adapters, triton=self._triton)
        if self._shared is not None and self._weights.shared_gate is not None:
            gate_T1 = self._linear(x_TD, self._weights.shared_gate, self._slices.shared_gate, batch)
            out_TD = moe.add_up(out_TD)
            out_TD.add_(self._shared.forward(x_TD, batch, is_whole=True) * gate_T1.sigmoid())
        return out_TD

    def _linear(
        self, x_TD: Tensor, weight_ND: Tensor, slices: tuple[PackedSlice, ...], batch: LoraBatch
    ) -> Tensor:
        y_TN = self._steps.linear(x_TD, weight_ND, None)
        if not batch.empty:
            lora.apply(y_TN, x_TD, slices=slices, batch=batch, table=self._adapters)
        return y_TN
