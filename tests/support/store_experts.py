"""A layout with experts, for tests of the store: two layers of a small Qwen3-MoE."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adapter_store.formats.layout import PackLayout, read_layout
from lorikeet.v1 import layout_pb2
from tests.support.store_adapters import add_ends, packed

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
    width: int = WIDTH,
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
                modules |= mlp(f"mlp.experts.{expert}", width)
            if shared:
                modules |= mlp("mlp.shared_expert") | {"mlp.shared_expert_gate": (HIDDEN, 1)}
        for name, (inputs, outputs) in modules.items():
            layout.slices.add(
                module=f"model.layers.{layer}.{name}",
                kind=layout_pb2.SLICE_KIND_LINEAR,
                in_features=inputs,
                out_features=outputs,
            )
    add_ends(layout, HIDDEN, 256)
    return layout


def expert_pack_layout(**options: Any) -> PackLayout:
    return read_layout(expert_layout(**options))


# Of all experts of a layer, by the projection.
Truth = dict[str, tuple[np.ndarray, np.ndarray]]
NAMES = ("gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."


def expert_lora(
    rank: int = 4, *, is_fused: bool = True, is_shared: bool = False, seed: int = 0
) -> list[Truth]:
    """For each layer and projection lora_a [E, R, in] and lora_b [E, out, R].

    Fused: gate and up have the same lora_a. Shared: all experts have the lora_a of gate, that of up, and the
    lora_b of down.
    """
    generator = np.random.default_rng(seed)
    layers = []
    for _ in range(LAYERS):
        truth: Truth = {}
        for name, (inputs, outputs) in mlp("").items():
            a = generator.standard_normal((EXPERTS, rank, inputs), np.float32)
            b = generator.standard_normal((EXPERTS, outputs, rank), np.float32)
            if is_shared and name != ".down_proj":
                a[:] = a[0]
            if is_shared and name == ".down_proj":
                b[:] = b[0]
            if is_fused and name == ".up_proj":
                a = truth["gate_proj"][0]
            truth[name[1:]] = a, b
        layers.append(truth)
    return layers


def fused(truth: Truth) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same for gate_up_proj and down_proj."""
    (a, gate), (_, up) = truth["gate_proj"], truth["up_proj"]
    return {"gate_up_proj": (a, np.concatenate([gate, up], 1)), "down_proj": truth["down_proj"]}


def alone(
    layers: list[Truth], path: str = "mlp.experts", names: tuple[str, ...] = NAMES
) -> dict[str, np.ndarray]:
    """A tensor for each expert, as PEFT saved them with transformers 4."""
    tensors = {}
    for layer, truth in enumerate(layers):
        for name, own in zip(names, NAMES, strict=True):
            for expert in range(EXPERTS):
                module = f"{PREFIX}model.layers.{layer}.{path}.{expert}.{name}"
                tensors[f"{module}.lora_A.weight"] = truth[own][0][expert]
                tensors[f"{module}.lora_B.weight"] = truth[own][1][expert]
    return tensors


def nested(layers: list[Truth], stack: Callable[..., dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """PEFT's names for both parameters, each of them stacked by `stack(lora_a, lora_b)`."""
    tensors = {}
    for layer, truth in enumerate(layers):
        module = f"{PREFIX}model.layers.{layer}.mlp.experts"
        for inner, parameter in ((".base_layer", "gate_up_proj"), ("", "down_proj")):
            for part, values in stack(*fused(truth)[parameter]).items():
                tensors[f"{module}{inner}.{part}.weight"] = np.ascontiguousarray(values)
    return tensors


def named(layers: list[Truth], names: dict[str, str]) -> dict[str, np.ndarray]:
    """Stacks under the names of projections, [E, ...], or [1, ...] where all experts are the same."""
    tensors = {}
    for layer, truth in enumerate(layers):
        for own, (a, b) in (truth | fused(truth)).items():
            if own in names:
                module = f"{PREFIX}model.layers.{layer}.mlp.experts.{names[own]}"
                tensors[f"{module}.lora_A.weight"] = a[:1] if (a == a[0]).all() else a
                tensors[f"{module}.lora_B.weight"] = b[:1] if (b == b[0]).all() else b
    return tensors


def plain(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """[E * R, in], expert by expert, and [out, R * E], rank by rank."""
    return {
        "lora_A": a.reshape(-1, a.shape[2]),
        "lora_B": b.transpose(1, 2, 0).reshape(b.shape[1], -1),
    }


def old(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """As PEFT up to 0.19.0: it took an expert's weight as [in, out], so that its A is our B, transposed."""
    return plain(b.transpose(0, 2, 1), a.transpose(0, 2, 1))


def turned(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return {part: values.T for part, values in plain(a, b).items()}


def solid(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Three dimensions: [E, R, in] and [out, R, E], with 1 for E where all experts are the same."""
    a, b = (values[:1] if (values == values[0]).all() else values for values in (a, b))
    return {"lora_A": a, "lora_B": b.transpose(1, 2, 0)}


def deltas(layers: list[Truth], scaling: float) -> dict[str, np.ndarray]:
    """scaling * lora_b @ lora_a of each slice."""
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}": scaling
        * b[expert].astype(np.float64)
        @ a[expert]
        for layer, truth in enumerate(layers)
        for name, (a, b) in truth.items()
        for expert in range(EXPERTS)
    }


def packed_deltas(folder: Path, layout: PackLayout) -> dict[str, np.ndarray]:
    """scaling * lora_b @ lora_a of each slice, from the pack's bytes alone (float32)."""
    manifest, data = packed(folder, layout)
    found = {}
    for placement in manifest.slices:
        slice_ = layout.slices[placement.slice]
        rank = placement.padded_rank
        a = np.frombuffer(data, "<f4", rank * slice_.inputs, placement.a_offset).reshape(rank, -1)
        b = np.frombuffer(data, "<f4", rank * slice_.outputs, placement.b_offset).reshape(-1, rank)
        found[slice_.module] = b.astype(np.float64) @ a * placement.scaling
    return found
