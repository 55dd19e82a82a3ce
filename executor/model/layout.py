"""Every place of the decoder that LoRA can touch: seven linear slices per layer, then embedding and head.

The order is part of the pack format: index `7 * layer + j` with j in the order of `LAYER_MODULES`, then
`embed_tokens`, then `lm_head`.
"""

from dataclasses import dataclass

import torch

from executor.model.config import ModelConfig
from kernels.lora import UNIT_BYTES, PackedSlice, SliceShape
from kernels.lora.table import RANK_MULTIPLE
from lorikeet.v1 import layout_pb2

PACK_FORMAT_VERSION = 2

LAYER_MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

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
    """A slice and the checkpoint's path of its module, and whether that has a bias in the base."""

    module: str
    shape: SliceShape
    has_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSlices:
    """A layer's slices as columns of its packed projections."""

    qkv: tuple[PackedSlice, ...]
    o: tuple[PackedSlice, ...]
    gate_up: tuple[PackedSlice, ...]
    down: tuple[PackedSlice, ...]


def named_slices(config: ModelConfig) -> tuple[NamedSlice, ...]:
    """All slices, by index."""
    hidden, wide = config.hidden_size, config.intermediate_size
    modules = {
        "self_attn.q_proj": (hidden, config.q_size, config.qkv_bias),
        "self_attn.k_proj": (hidden, config.kv_size, config.qkv_bias),
        "self_attn.v_proj": (hidden, config.kv_size, config.qkv_bias),
        "self_attn.o_proj": (config.q_size, hidden, config.o_bias),
        "mlp.gate_proj": (hidden, wide, config.mlp_bias),
        "mlp.up_proj": (hidden, wide, config.mlp_bias),
        "mlp.down_proj": (wide, hidden, config.mlp_bias),
    }
    slices = [
        NamedSlice(
            module=f"model.layers.{layer}.{module}",
            shape=SliceShape(kind="linear", in_features=inputs, out_features=outputs),
            has_bias=has_bias,
        )
        for layer in range(config.layers)
        for module in LAYER_MODULES
        for inputs, outputs, has_bias in (modules[module],)
    ]
    embedding = SliceShape(kind="embedding", in_features=config.vocab_size, out_features=hidden)
    head = SliceShape(kind="linear", in_features=hidden, out_features=config.vocab_size)
    slices.append(NamedSlice(module="model.embed_tokens", shape=embedding, has_bias=False))
    slices.append(NamedSlice(module="lm_head", shape=head, has_bias=False))
    return tuple(slices)


def layer_slices(config: ModelConfig, layer: int) -> LayerSlices:
    """A layer's slices, grouped as the decoder's matrices pack them."""
    first = len(LAYER_MODULES) * layer
    q, kv, wide = config.q_size, config.kv_size, config.intermediate_size
    return LayerSlices(
        qkv=(
            PackedSlice(first, 0, q),
            PackedSlice(first + 1, q, q + kv),
            PackedSlice(first + 2, q + kv, q + 2 * kv),
        ),
        o=(PackedSlice(first + 3, 0, config.hidden_size),),
        gate_up=(PackedSlice(first + 4, 0, wide), PackedSlice(first + 5, wide, 2 * wide)),
        down=(PackedSlice(first + 6, 0, config.hidden_size),),
    )


def embedding_index(config: ModelConfig) -> int:
    return len(LAYER_MODULES) * config.layers


def head_slices(config: ModelConfig) -> tuple[PackedSlice, ...]:
    return (PackedSlice(embedding_index(config) + 1, 0, config.vocab_size),)


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
