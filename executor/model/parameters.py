"""The decoder's tensors, and which part of them each tensor of a checkpoint fills."""

from dataclasses import dataclass

import torch
from torch import Tensor

from executor.model.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """`[out, in]` weight and, where the family has one, `[out]` bias."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParameters:
    """One decoder layer: norms `[hidden]`, q_norm and k_norm `[head dim]` where the family has them.

    q,k,v are packed by output rows into one matrix, and so are gate,up.
    """

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_attention_norm: Tensor
    gate_up: Linear
    down: Linear


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

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        def linear(out: int, in_: int, *, bias: bool) -> Linear:
            return Linear(weight=empty(out, in_), bias=empty(out) if bias else None)

        hidden, wide = config.hidden_size, config.intermediate_size
        layers = tuple(
            LayerParameters(
                input_norm=empty(hidden),
                qkv=linear(config.q_size + 2 * config.kv_size, hidden, bias=config.qkv_bias),
                q_norm=empty(config.head_dim) if config.qk_norm else None,
                k_norm=empty(config.head_dim) if config.qk_norm else None,
                o=linear(hidden, config.q_size, bias=config.o_bias),
                post_attention_norm=empty(hidden),
                gate_up=linear(2 * wide, hidden, bias=config.mlp_bias),
                down=linear(hidden, wide, bias=config.mlp_bias),
            )
            for _ in range(config.layers)
        )
        embed = empty(config.vocab_size, hidden)
        head = embed if config.tied_head else empty(config.vocab_size, hidden)
        return cls(embed=embed, layers=layers, norm=empty(hidden), head=head)

    def destinations(self, config: ModelConfig) -> dict[str, Tensor]:
        """Hugging Face tensor name -> the view that it fills; together they cover every element once."""
        views = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        if not config.tied_head:
            views["lm_head.weight"] = self.head
        for index, layer in enumerate(self.layers):
            views |= {
                f"model.layers.{index}.{name}": view
                for name, view in _layer_destinations(layer, config).items()
            }
        return views


def _layer_destinations(layer: LayerParameters, config: ModelConfig) -> dict[str, Tensor]:
    views = {
        "input_layernorm.weight": layer.input_norm,
        "post_attention_layernorm.weight": layer.post_attention_norm,
    }
    if layer.q_norm is not None and layer.k_norm is not None:
        views |= {"self_attn.q_norm.weight": layer.q_norm, "self_attn.k_norm.weight": layer.k_norm}
    packed = (
        (
            layer.qkv,
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            (config.q_size, config.kv_size, config.kv_size),
        ),
        (layer.o, ("self_attn.o_proj",), (config.hidden_size,)),
        (layer.gate_up, ("mlp.gate_proj", "mlp.up_proj"), (config.intermediate_size,) * 2),
        (layer.down, ("mlp.down_proj",), (config.hidden_size,)),
    )
    for linear, modules, sizes in packed:
        views |= {f"{m}.weight": view for m, view in zip(modules, linear.weight.split(sizes), strict=True)}
        if linear.bias is not None:
            views |= {f"{m}.bias": view for m, view in zip(modules, linear.bias.split(sizes), strict=True)}
    return views
