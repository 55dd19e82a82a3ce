"""One decoder for all dense families: what differs between them is in `ModelConfig` and in which tensors
exist.

Legend: T tokens, N rows of logits, D hidden, H query heads, K KV heads, P = (H + 2 K) x head dimension, I
intermediate, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, silu

from executor.model.attention import Attention
from executor.model.batch import Batch
from executor.model.config import ModelConfig
from executor.model.kv_cache import KvCache
from executor.model.layout import embedding_index, head_slices, layer_slices
from executor.model.parameters import Parameters
from executor.model.rope import Rotary
from kernels import lora
from kernels.lora import LoraBatch, PackedSlice, SlotTable


class Decoder:
    """Parameters, cache and adapters bound together. `forward` computes tokens, `logits` scores some of
    them.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Parameters,
        *,
        cache: KvCache,
        attention: Attention[Any],
        adapters: SlotTable,
    ) -> None:
        self.config = config
        self._parameters = parameters
        self._adapters = adapters
        dtype, device = parameters.embed.dtype, parameters.embed.device
        self._rotary = Rotary(config.rope, head_dim=config.head_dim, dtype=dtype, device=device)
        self._layers = tuple(
            _Layer(config, parameters, index, cache=cache, attention=attention, adapters=adapters)
            for index in range(config.layers)
        )
        self._embedding_slice = embedding_index(config)
        self._head_slices = head_slices(config)

    def forward(self, batch: Batch) -> Tensor:
        """Run all layers, storing KV. Returns the residual stream `[T, D]`, before the final norm."""
        x_TD = embedding(batch.input_ids, self._parameters.embed)
        if not batch.lora.empty:
            for adapt in (lora.replace_embedding, lora.embed):
                adapt(
                    x_TD,
                    batch.input_ids,
                    slice_index=self._embedding_slice,
                    batch=batch.lora,
                    table=self._adapters,
                )
        factors = self._rotary.factors(batch.positions)
        for layer in self._layers:
            x_TD = layer.forward(x_TD, batch, self._rotary, factors)
        return x_TD

    def logits(self, x_ND: Tensor, batch: LoraBatch) -> Tensor:
        """Score rows of the residual stream; `batch` says whose they are. Returns float32 `[N, V]`."""
        x_ND = rms_norm(x_ND, self._parameters.norm, self.config.norm_eps)
        logits_NV = linear(x_ND, self._parameters.head)
        if not batch.empty:
            lora.replace_linear(
                logits_NV, x_ND, slice_index=self._head_slices[0].slice, batch=batch, table=self._adapters
            )
            lora.apply(logits_NV, x_ND, slices=self._head_slices, batch=batch, table=self._adapters)
        return logits_NV.float()


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
    ) -> None:
        self._index = index
        self._weights = weights = parameters.layers[index]
        self._cache = cache
        self._attention = attention
        self._adapters = adapters
        self._slices = layer_slices(config, index)
        self._eps = config.norm_eps
        self._heads, self._kv_heads, self._head_dim = config.heads, config.kv_heads, config.head_dim
        self._window = config.windows[index]
        self._qk_norm: Tensor | None = None
        if weights.q_norm is not None and weights.k_norm is not None:
            # One norm over query and key heads together, each with its own weight.
            per_head = [weights.q_norm] * config.heads + [weights.k_norm] * config.kv_heads
            self._qk_norm = torch.stack(per_head)

    def forward(self, x_TD: Tensor, batch: Batch, rotary: Rotary, factors: tuple[Tensor, Tensor]) -> Tensor:
        x_TD = x_TD + self._attend(
            rms_norm(x_TD, self._weights.input_norm, self._eps), batch, rotary, factors
        )
        return x_TD + self._mlp(rms_norm(x_TD, self._weights.post_attention_norm, self._eps), batch)

    def _attend(self, x_TD: Tensor, batch: Batch, rotary: Rotary, factors: tuple[Tensor, Tensor]) -> Tensor:
        weights = self._weights
        qkv_TP = linear(x_TD, weights.qkv.weight, weights.qkv.bias)
        self._add_lora(qkv_TP, x_TD, self._slices.qkv, batch)
        heads = qkv_TP.view(len(x_TD), -1, self._head_dim)
        qk, v_TKd = heads[:, : -self._kv_heads], heads[:, -self._kv_heads :]
        if self._qk_norm is not None:
            qk = rms_norm(qk, self._qk_norm, self._eps)
        qk = rotary.rotate(qk, factors)
        self._cache.write(self._index, batch.kv_tokens, qk[:, self._heads :], v_TKd)
        out_TE = self._attention(qk[:, : self._heads], self._index, batch.attention[self._window])
        o_TD = linear(out_TE, weights.o.weight, weights.o.bias)
        self._add_lora(o_TD, out_TE, self._slices.o, batch)
        return o_TD

    def _mlp(self, x_TD: Tensor, batch: Batch) -> Tensor:
        weights = self._weights
        gate_up_T2I = linear(x_TD, weights.gate_up.weight, weights.gate_up.bias)
        self._add_lora(gate_up_T2I, x_TD, self._slices.gate_up, batch)
        gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
        wide_TI = silu(gate_TI).mul_(up_TI)
        down_TD = linear(wide_TI, weights.down.weight, weights.down.bias)
        self._add_lora(down_TD, wide_TI, self._slices.down, batch)
        return down_TD

    def _add_lora(self, y: Tensor, x: Tensor, slices: tuple[PackedSlice, ...], batch: Batch) -> None:
        if not batch.lora.empty:
            lora.apply(y, x, slices=slices, batch=batch.lora, table=self._adapters)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019), in float32, rounded before
    the weight.

    x `[..., D]`, weight broadcastable to it.
    """
    wide = x.float()
    scale = wide.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype) * weight
