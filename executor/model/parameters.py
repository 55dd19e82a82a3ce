"""The decoder's tensors, and which part of them each tensor of a checkpoint fills."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from executor.model.config import ModelConfig
from executor.model.expert_options import ExpertsConfig
from kernels.moe import ExpertWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """`[out, in]` weight and, where the family has one, `[out]` bias."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpParameters:
    """gate,up are packed by output rows into one matrix."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertParameters:
    """In a dense MLP's place: router `[experts, hidden]`, the experts, and, where the family has one, a
    shared expert with its gate `[1, hidden]`.
    """

    router: Tensor
    experts: ExpertWeights
    shared: MlpParameters | None
    shared_gate: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParameters:
    """One decoder layer: norms `[hidden]`; q_norm and k_norm, where the family has them, `[head dim]` or of
    all heads together.

    q,k,v are packed by output rows into one matrix.
    """

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_attention_norm: Tensor
    mlp: MlpParameters | ExpertParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The whole decoder; embed and head are `[vocabulary, hidden]`, one and the same tensor where tied."""

    embed: Tensor
    layers: tuple[LayerParameters, ...]
    norm: Tensor
    head: Tensor

    @classmethod
    def allocate(cls, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> "Parameters":
        """Uninitialised tensors; `destinations` says what goes where."""
        make = _Allocator(config, dtype, device)
        embed = make.empty(config.vocab_size, config.hidden_size)
        return cls(
            embed=embed,
            layers=tuple(make.layer(index) for index in range(config.layers)),
            norm=make.empty(config.hidden_size),
            head=embed if config.tied_head else torch.empty_like(embed),
        )

    def destinations(self, config: ModelConfig, *, stacked: Collection[int] = ()) -> dict[str, Tensor]:
        """Hugging Face tensor name -> the view that it fills; together they cover every element once.

        Experts are named one by one, but in the layers `stacked` all at once: `mlp.experts.gate_up_proj
        [experts, 2 x width, hidden]`, gate's rows first, and `mlp.experts.down_proj [experts, hidden,
        width]`.
        """
        views = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        if not config.tied_head:
            views["lm_head.weight"] = self.head
        for index, layer in enumerate(self.layers):
            views |= {
                f"model.layers.{index}.{name}": view
                for name, view in _layer_destinations(layer, config, stacked=index in stacked).items()
            }
        return views


class _Allocator:
    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config, self._dtype, self._device = config, dtype, device

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def layer(self, index: int) -> LayerParameters:
        config = self._config
        hidden, experts = config.hidden_size, config.experts_of(index)
        q_norm, k_norm = {
            "none": (None, None),
            "heads": (config.head_dim, config.head_dim),
            "whole": (config.q_size, config.kv_size),
        }[config.qk_norm]
        return LayerParameters(
            input_norm=self.empty(hidden),
            qkv=self._linear(config.q_size + 2 * config.kv_size, hidden, bias=config.qkv_bias),
            q_norm=None if q_norm is None else self.empty(q_norm),
            k_norm=None if k_norm is None else self.empty(k_norm),
            o=self._linear(hidden, config.q_size, bias=config.o_bias),
            post_attention_norm=self.empty(hidden),
            mlp=self._mlp(config.intermediate_size) if experts is None else self._experts(experts),
        )

    def _experts(self, experts: ExpertsConfig) -> ExpertParameters:
        hidden, width, shared = self._config.hidden_size, experts.width, experts.shared_width
        return ExpertParameters(
            router=self.empty(experts.count, hidden),
            experts=ExpertWeights(
                gate_up_E2ID=self.empty(experts.count, 2 * width, hidden),
                down_EDI=self.empty(experts.count, hidden, width),
            ),
            shared=None if shared is None else self._mlp(shared),
            shared_gate=None if shared is None else self.empty(1, hidden),
        )

    def _mlp(self, width: int) -> MlpParameters:
        hidden, bias = self._config.hidden_size, self._config.mlp_bias
        return MlpParameters(
            gate_up=self._linear(2 * width, hidden, bias=bias), down=self._linear(hidden, width, bias=bias)
        )

    def _linear(self, out: int, in_: int, *, bias: bool) -> Linear:
        return Linear(weight=self.empty(out, in_), bias=self.empty(out) if bias else None)


def _layer_destinations(layer: LayerParameters, config: ModelConfig, *, stacked: bool) -> dict[str, Tensor]:
    views = {
        "input_layernorm.weight": layer.input_norm,
        "post_attention_layernorm.weight": layer.post_attention_norm,
    }
    if layer.q_norm is not None and layer.k_norm is not None:
        views |= {"self_attn.q_norm.weight": layer.q_norm, "self_attn.k_norm.weight": layer.k_norm}
    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    views |= _split(layer.qkv, qkv, (config.q_size, config.kv_size, config.kv_size))
    views |= _split(layer.o, ("self_attn.o_proj",), (config.hidden_size,))
    if isinstance(layer.mlp, MlpParameters):
        return views | _mlp_destinations("mlp", layer.mlp)
    views["mlp.gate.weight"] = layer.mlp.router
    gate_up_E2ID, down_EDI = layer.mlp.experts
    if stacked:
        views |= {"mlp.experts.gate_up_proj": gate_up_E2ID, "mlp.experts.down_proj": down_EDI}
    else:
        for e, (gate_up_2ID, down_DI) in enumerate(zip(gate_up_E2ID, down_EDI, strict=True)):
            gate_ID, up_ID = gate_up_2ID.chunk(2)
            views[f"mlp.experts.{e}.gate_proj.weight"] = gate_ID
            views[f"mlp.experts.{e}.up_proj.weight"] = up_ID
            views[f"mlp.experts.{e}.down_proj.weight"] = down_DI
    if layer.mlp.shared is not None and layer.mlp.shared_gate is not None:
        views |= _mlp_destinations("mlp.shared_expert", layer.mlp.shared)
        views["mlp.shared_expert_gate.weight"] = layer.mlp.shared_gate
    return views


def _mlp_destinations(path: str, mlp: MlpParameters) -> dict[str, Tensor]:
    hidden, width = mlp.down.weight.shape
    return _split(mlp.gate_up, (f"{path}.gate_proj", f"{path}.up_proj"), (width, width)) | _split(
        mlp.down, (f"{path}.down_proj",), (hidden,)
    )


def _split(linear: Linear, modules: tuple[str, ...], sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Views of modules that are packed by output rows."""
    views = {f"{m}.weight": view for m, view in zip(modules, linear.weight.split(sizes), strict=True)}
    if linear.bias is not None:
        views |= {f"{m}.bias": view for m, view in zip(modules, linear.bias.split(sizes), strict=True)}
    return views
