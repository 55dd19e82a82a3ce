"""Every place of the decoder that LoRA can touch, and the index of each.

The order is part of the pack format. Layer by layer: q, k, v, o of the attention, then

    dense         mlp.gate_proj, up_proj, down_proj
    with experts  mlp.gate (the router), then gate_proj, up_proj, down_proj of each of mlp.experts, then those
                  of mlp.shared_expert and mlp.shared_expert_gate, where the family has them

and after the last layer `model.embed_tokens` and `lm_head`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from executor.model.config import ModelConfig
from executor.model.expert_options import ExpertsConfig
from kernels.lora import UNIT_BYTES, PackedSlice, SliceShape
from kernels.lora.rows import RANK_MULTIPLE
from lorikeet.v1 import layout_pb2

PACK_FORMAT_VERSION = 2

REPLACEABLE_MODULES = ("model.embed_tokens", "lm_head")
"""Those for which an adapter may bring a whole weight of its own."""

_TENSOR_TYPES = {
    torch.float32: layout_pb2.TENSOR_TYPE_FLOAT32,
    torch.bfloat16: layout_pb2.TENSOR_TYPE_BFLOAT16,
    torch.float16: layout_pb2.TENSOR_TYPE_FLOAT16,
}
_KINDS = {"linear": layout_pb2.SLICE_KIND_LINEAR, "embedding": layout_pb2.SLICE_KIND_EMBEDDING}


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSlice:
    """A slice and the checkpoint's path of its module, and whether that has a bias in the base.

    `is_plain`: it takes LoRA and nothing else, no magnitude and no bias.
    """

    module: str
    shape: SliceShape
    has_bias: bool = False
    is_plain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpSlices:
    """A dense MLP's slices as columns of its packed projections."""

    gate_up: tuple[PackedSlice, ...]
    down: tuple[PackedSlice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSlices:
    """Expert e's gate, up and down are slices `first_expert + 3 e + (0, 1, 2)`."""

    router: tuple[PackedSlice, ...]
    first_expert: int
    shared: MlpSlices | None
    shared_gate: tuple[PackedSlice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSlices:
    """A layer's slices as columns of its packed projections."""

    qkv: tuple[PackedSlice, ...]
    o: tuple[PackedSlice, ...]
    mlp: MlpSlices | ExpertSlices


def named_slices(config: ModelConfig) -> tuple[NamedSlice, ...]:
    """All slices, by index."""
    hidden, vocabulary = config.hidden_size, config.vocab_size
    slices = [
        NamedSlice(
            module=f"model.layers.{layer}.{named.module}",
            shape=named.shape,
            has_bias=named.has_bias,
            is_plain=named.is_plain,
        )
        for layer in range(config.layers)
        for named in _layer(config, layer)
    ]
    embedding = SliceShape(kind="embedding", in_features=vocabulary, out_features=hidden)
    slices.append(NamedSlice(module="model.embed_tokens", shape=embedding))
    slices.append(NamedSlice(module="lm_head", shape=_linear(hidden, vocabulary)))
    return tuple(slices)


def layer_slices(config: ModelConfig, layer: int) -> LayerSlices:
    """A layer's slices, grouped as the decoder's matrices pack them."""
    first = _first_slice(config, layer)
    q, kv, hidden = config.q_size, config.kv_size, config.hidden_size
    experts, mlp = config.experts_of(layer), first + 4
    return LayerSlices(
        qkv=(
            PackedSlice(first, 0, q),
            PackedSlice(first + 1, q, q + kv),
            PackedSlice(first + 2, q + kv, q + 2 * kv),
        ),
        o=(PackedSlice(first + 3, 0, hidden),),
        mlp=_mlp_slices(config, mlp, config.intermediate_size)
        if experts is None
        else _expert_slices(config, experts, mlp),
    )


def router_slices(config: ModelConfig) -> tuple[int, ...]:
    """Those of all layers that have experts."""
    mlps = [layer_slices(config, layer).mlp for layer in range(config.layers)]
    return tuple(packed.slice for mlp in mlps if isinstance(mlp, ExpertSlices) for packed in mlp.router)


def embedding_index(config: ModelConfig) -> int:
    return _first_slice(config, config.layers)


def head_slices(config: ModelConfig) -> tuple[PackedSlice, ...]:
    return (PackedSlice(embedding_index(config) + 1, 0, config.vocab_size),)


def _mlp_slices(config: ModelConfig, first: int, width: int) -> MlpSlices:
    return MlpSlices(
        gate_up=(PackedSlice(first, 0, width), PackedSlice(first + 1, width, 2 * width)),
        down=(PackedSlice(first + 2, 0, config.hidden_size),),
    )


def _expert_slices(config: ModelConfig, experts: ExpertsConfig, first: int) -> ExpertSlices:
    shared = first + 1 + 3 * experts.count
    width = experts.shared_width
    return ExpertSlices(
        router=(PackedSlice(first, 0, experts.count),),
        first_expert=first + 1,
        shared=None if width is None else _mlp_slices(config, shared, width),
        shared_gate=() if width is None else (PackedSlice(shared + 3, 0, 1),),
    )


def _first_slice(config: ModelConfig, layer: int) -> int:
    """Of a layer; of the one after the last, the number of slices before the embedding."""
    sparse = sum(config.experts.layers[:layer]) if config.experts is not None else 0
    return 7 * (layer - sparse) + (_slices_with_experts(config.experts) * sparse if config.experts else 0)


def _slices_with_experts(experts: ExpertsConfig) -> int:
    return 5 + 3 * experts.count + (0 if experts.shared_width is None else 4)


def _layer(config: ModelConfig, layer: int) -> Iterator[NamedSlice]:
    """A layer's slices in order; modules by their path in the layer."""
    hidden, q, kv, bias = config.hidden_size, config.q_size, config.kv_size, config.qkv_bias
    yield NamedSlice(module="self_attn.q_proj", shape=_linear(hidden, q), has_bias=bias)
    yield NamedSlice(module="self_attn.k_proj", shape=_linear(hidden, kv), has_bias=bias)
    yield NamedSlice(module="self_attn.v_proj", shape=_linear(hidden, kv), has_bias=bias)
    yield NamedSlice(module="self_attn.o_proj", shape=_linear(q, hidden), has_bias=config.o_bias)
    experts = config.experts_of(layer)
    if experts is None:
        yield from _mlp("mlp", hidden, config.intermediate_size, has_bias=config.mlp_bias)
        return
    yield NamedSlice(module="mlp.gate", shape=_linear(hidden, experts.count))
    for e in range(experts.count):
        yield from _mlp(f"mlp.experts.{e}", hidden, experts.width, is_plain=True)
    if experts.shared_width is not None:
        yield from _mlp("mlp.shared_expert", hidden, experts.shared_width, has_bias=config.mlp_bias)
        yield NamedSlice(module="mlp.shared_expert_gate", shape=_linear(hidden, 1))


def _mlp(
    path: str, hidden: int, width: int, *, has_bias: bool = False, is_plain: bool = False
) -> Iterator[NamedSlice]:
    wide, narrow = _linear(hidden, width), _linear(width, hidden)
    for name, shape in (("gate_proj", wide), ("up_proj", wide), ("down_proj", narrow)):
        yield NamedSlice(module=f"{path}.{name}", shape=shape, has_bias=has_bias, is_plain=is_plain)


def _linear(inputs: int, outputs: int) -> SliceShape:
    return SliceShape(kind="linear", in_features=inputs, out_features=outputs)


def build_layout(
    config: ModelConfig,
    *,
    base_digest: str,
    base_name: str,
    dtype: torch.dtype,
    max_rank: int,
    max_pack_bytes: int,
) -> layout_pb2.Layout:
    """What the executor publishes to the store: which packs it can take."""
    return layout_pb2.Layout(
        pack_format_version=PACK_FORMAT_VERSION,
        base_digest=base_digest,
        base_name=base_name,
        compute_dtype=_TENSOR_TYPES[dtype],
        tensor_parallel_size=1,
        alignment_bytes=UNIT_BYTES,
        rank_multiple=RANK_MULTIPLE,
        max_rank=max_rank,
        slices=[
            layout_pb2.SliceSpec(
                module=named.module,
                kind=_KINDS[named.shape.kind],
                in_features=named.shape.in_features,
                out_features=named.shape.out_features,
                has_bias=named.has_bias,
                is_replaceable=named.module in REPLACEABLE_MODULES,
            )
            for named in named_slices(config)
        ],
        max_pack_bytes=max_pack_bytes,
    )
