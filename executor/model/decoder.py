"""One decoder for all families: what differs between them is in `ModelConfig` and in which tensors exist.

Legend: T tokens, N rows of logits, D hidden, H query heads, K KV heads, P = (H + 2 K) x head dimension, V
vocabulary.
"""

from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.nn.functional import embedding

from executor.model.attention import Attention
from executor.model.batch import Batch
from executor.model.config import ModelConfig
from executor.model.experts import SparseMlp
from executor.model.kv_cache import KvCache
from executor.model.layout import MlpSlices, embedding_index, head_slices, layer_slices
from executor.model.mlp import DenseMlp
from executor.model.parameters import MlpParameters, Parameters
from executor.model.projection import project
from executor.model.rope import rotary_tables
from kernels import lora, moe
from kernels.fused import FusedSteps
from kernels.fused.reference import rms_norm, whole
from kernels.lora import LoraBatch, SlotTable
from kernels.moe import Pairs


class Decoder:
    """Parameters, cache and adapters bound together. `forward` or `layers` compute tokens, `logits` scores
    some of them.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Parameters,
        *,
        cache: KvCache,
        attention: Attention[Any],
        adapters: SlotTable,
        steps: FusedSteps,
        triton: bool,
        max_context: int,
    ) -> None:
        """`triton`: experts are computed with Triton's kernels, as `steps` and `attention` are by theirs."""
        self.config = config
        self._parameters = parameters
        self._adapters = adapters
        dtype, device = parameters.embed.dtype, parameters.embed.device
        self._steps = steps
        rotary = rotary_tables(
            config.rope, head_dim=config.head_dim, length=max_context, dtype=dtype, device=device
        )
        self._layers = tuple(
            _Layer(
                config,
                parameters,
                index,
                cache=cache,
                attention=attention,
                adapters=adapters,
                steps=steps,
                triton=triton,
                rotary=rotary,
            )
            for index in range(config.layers)
        )
        self._embedding_slice = embedding_index(config)
        self._head_slices = head_slices(config)

    def forward(self, batch: Batch) -> Tensor:
        """Run all layers, storing KV. Returns the residual stream `[T, D]`, before the final norm."""
        x_TD, delta_TD = self.layers(batch)
        return x_TD.add_(whole(delta_TD, x_TD.dtype))

    def layers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same, and what is still to be added to the stream, as `FusedSteps.add_norm` can."""
        x_TD = embedding(batch.input_ids, self._parameters.embed)
        if batch.lora.touches_ends and not batch.lora.empty:
            for adapt in (lora.replace_embedding, lora.embed):
                adapt(
                    x_TD,
                    batch.input_ids,
                    slice_index=self._embedding_slice,
                    batch=batch.lora,
                    table=self._adapters,
                )
        delta_TD: Tensor | Pairs | None = None
        for layer in self._layers:
            delta_TD = layer.forward(x_TD, delta_TD, batch)
        assert delta_TD is not None, "a decoder has layers"
        return x_TD, moe.add_up(delta_TD)

    def keep_one_of_each_kind(self) -> None:
        """Forget layers that launch what others do: for who looks at launches only."""
        config = self.config
        kinds = [(config.windows[index], config.experts_of(index)) for index in range(config.layers)]
        # A layer adds what the one before it left, and what the last one left is added up.
        followed = {pair: index for index, pair in enumerate(pairwise(kinds))}
        kept = {0, config.layers - 1, *followed.values(), *(index + 1 for index in followed.values())}
        self._layers = tuple(self._layers[index] for index in sorted(kept))

    def logits(
        self,
        x_ND: Tensor,
        batch: LoraBatch,
        *,
        delta_ND: Tensor | None = None,
        out_NV: Tensor | None = None,
    ) -> Tensor:
        """Score rows of the residual stream, to which `delta` is still to be added; `batch` says whose they
        are. Returns `[N, V]`, in `out_NV` where that is given.
        """
        x_ND = self._steps.add_norm(x_ND, delta_ND, self._parameters.norm, self.config.norm_eps)
        logits_NV = self._steps.linear(x_ND, self._parameters.head, None, out_NV)
        if batch.touches_ends and not batch.empty:
            lora.replace_linear(
                logits_NV, x_ND, slice_index=self._head_slices[0].slice, batch=batch, table=self._adapters
            )
            lora.apply(logits_NV, x_ND, slices=self._head_slices, batch=batch, table=self._adapters)
        return logits_NV


class _Layer:
    """One decoder layer."""

    def __init__(
        self,
        config: ModelConfig,
        parameters: Parameters,
        index: int,
        *,
        cache: KvCache,
        attention: Attention[Any],
        adapters: SlotTable,
        steps: FusedSteps,
        triton: bool,
        rotary: tuple[Tensor, Tensor],
    ) -> None:
        self._index = index
        self._weights = weights = parameters.layers[index]
        self._kv = cache.tokens(index)
        self._attention = attention
        self._steps = steps
        self._project = partial(project, adapters=adapters, steps=steps)
        self._rotary = rotary
        self._slices = layer_slices(config, index)
        self._eps = config.norm_eps
        self._window = config.windows[index]
        self._clip = config.clip_qkv
        self._head_norms = self._whole_norms = None
        if weights.q_norm is not None and weights.k_norm is not None:
            norms = weights.q_norm, weights.k_norm
            if config.qk_norm == "heads":
                self._head_norms = norms
            else:
                self._whole_norms = norms
        mlp, slices, experts = weights.mlp, self._slices.mlp, config.experts_of(index)
        if isinstance(mlp, MlpParameters):
            assert isinstance(slices, MlpSlices)
            self._mlp = DenseMlp(mlp, slices, adapters=adapters, steps=steps)
        else:
            assert experts is not None
            assert not isinstance(slices, MlpSlices)
            self._mlp = SparseMlp(experts, mlp, slices, adapters=adapters, steps=steps, triton=triton)

    def forward(self, x_TD: Tensor, delta_TD: Tensor | Pairs | None, batch: Batch) -> Tensor | Pairs:
        """Add `delta`, what the layer before returned, and the attention's output to the residual stream, in
        place; return the MLP's output, which is still to be added.
        """
        add_norm, weights = self._steps.add_norm, self._weights
        if isinstance(delta_TD, Pairs):
            normed_TD = moe.add_norm(x_TD, delta_TD, weights.input_norm, self._eps)
        else:
            normed_TD = add_norm(x_TD, delta_TD, weights.input_norm, self._eps)
        x_TD = add_norm(x_TD, self._attend(normed_TD, batch), weights.post_attention_norm, self._eps)
        if isinstance(self._mlp, DenseMlp):
            return self._mlp.forward(x_TD, batch.lora)
        return self._mlp.forward(x_TD, batch.lora, places_T=batch.kv_tokens)

    def _attend(self, x_TD: Tensor, batch: Batch) -> Tensor:
        weights = self._weights
        qkv_TP = self._project(x_TD, weights.qkv, self._slices.qkv, batch.lora)
        if self._whole_norms is not None or self._clip is not None:
            qkv_TP = whole(qkv_TP, x_TD.dtype)
            self._norm_and_clip(qkv_TP)
        plan, kv_tokens, norms = batch.attention[self._window], batch.kv_tokens, self._head_norms
        out_TE = self._attention.decode(qkv_TP, self._index, plan, kv_tokens, self._rotary, norms, self._eps)
        if out_TE is None:
            q_THd = self._steps.rotate_store(
                qkv_TP, self._kv, kv_tokens, self._rotary, batch.positions, norms, self._eps
            )
            out_TE = self._attention(q_THd, self._index, plan)
        return self._project(out_TE, weights.o, self._slices.o, batch.lora, is_added=True)

    def _norm_and_clip(self, qkv_TP: Tensor) -> None:
        """What few families do to whole projections, in place."""
        if self._whole_norms is not None:
            q_norm, k_norm = self._whole_norms
            q, k = len(q_norm), len(k_norm)
            for part, weight in ((qkv_TP[:, :q], q_norm), (qkv_TP[:, q : q + k], k_norm)):
                part.copy_(rms_norm(part, weight, self._eps))
        if self._clip is not None:
            qkv_TP.clamp_(-self._clip, self._clip)
