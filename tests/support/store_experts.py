"""A layout with experts, for tests of the store: two layers of a small Qwen3-MoE."""

from typing import Any

from adapter_store.formats.layout import PackLayout, read_layout
from lorikeet.v1 import layout_pb2

EXPERTS, WIDTH, HIDDEN, QUERY, KEY = 4, 48, 64, 128, 64
LAYERS = 2


def attention(query: int, key: int) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of attention's projections."""
    return {
        "self_attn.q_proj": (HIDDEN, query),
        "self_attn.k_proj": (HIDDEN, key),
        "self_attn.v_proj": (HIDDEN, key),
        "self_attn.o_proj": (query, HIDDEN),
    }


def mlp(prefix: str, width: int = WIDTH) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a gated MLP's projections."""
    return {
        f"{prefix}.gate_proj": (HIDDEN, width),
        f"{prefix}.up_proj": (HIDDEN, width),
        f"{prefix}.down_proj": (width, HIDDEN),
    }


def expert_layout(
    *,
    experts: int = EXPERTS,
    dense_layers: tuple[int, ...] = (),
    shared: bool = False,
    query: int = QUERY,
    key: int = KEY,
    dtype: layout_pb2.TensorType = layout_pb2.TENSOR_TYPE_FLOAT32,
    **fields: Any,
) -> layout_pb2.Layout:
    """Slices in the order that executors publish; some layers may be dense, or have a shared expert too."""
    layout = layout_pb2.Layout(
        **{
            "pack_format_version": 2,
            "base_digest": "0" * 64,
            "base_name": "toy-moe",
            "compute_dtype": dtype,
            "tensor_parallel_size": 1,
            "alignment_bytes": 128,
            "rank_multiple": 8,
            "max_rank": 64,
            **fields,
        }
    )
    for layer in range(LAYERS):
        modules = attention(query, key)
        if layer in dense_layers:
            modules |= mlp("mlp", 2 * WIDTH)
        else:
            modules["mlp.gate"] = (HIDDEN, experts)
            for expert in range(experts):
                modules |= mlp(f"mlp.experts.{expert}")
            if shared:
                modules |= mlp("mlp.shared_expert") | {"mlp.shared_expert_gate": (HIDDEN, 1)}
        for name, (inputs, outputs) in modules.items():
            layout.slices.add(
                module=f"model.layers.{layer}.{name}",
                kind=layout_pb2.SLICE_KIND_LINEAR,
                in_features=inputs,
                out_features=outputs,
            )
    layout.slices.add(
        module="model.embed_tokens",
        kind=layout_pb2.SLICE_KIND_EMBEDDING,
        in_features=256,
        out_features=HIDDEN,
        is_replaceable=True,
    )
    layout.slices.add(
        module="lm_head",
        kind=layout_pb2.SLICE_KIND_LINEAR,
        in_features=HIDDEN,
        out_features=256,
        is_replaceable=True,
    )
    return layout


def expert_pack_layout(**options: Any) -> PackLayout:
    return read_layout(expert_layout(**options))
