"""Adapters and layouts for tests of the store: small, seeded, written as PEFT writes them."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from adapter_store.formats.layout import PackLayout, read_layout
from adapter_store.formats.safetensors_files import TensorFiles
from adapter_store.packs.filling import PackFiller
from adapter_store.packs.identity import TensorScan
from adapter_store.packs.plan import PackPlan
from adapter_store.packs.reading import check_adapter, open_adapter
from lorikeet.v1 import layout_pb2

HIDDEN, HEADS_OUT, KV_OUT, MLP, VOCABULARY = 16, 32, 8, 24, 40

LINEARS = {
    "self_attn.q_proj": (HIDDEN, HEADS_OUT),
    "self_attn.k_proj": (HIDDEN, KV_OUT),
    "self_attn.v_proj": (HIDDEN, KV_OUT),
    "self_attn.o_proj": (HEADS_OUT, HIDDEN),
    "mlp.gate_proj": (HIDDEN, MLP),
    "mlp.up_proj": (HIDDEN, MLP),
    "mlp.down_proj": (MLP, HIDDEN),
}

BIASED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

NUMPY = {"F32": np.dtype("f4"), "F16": np.dtype("f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


def add_ends(layout: layout_pb2.Layout, hidden: int, vocabulary: int) -> None:
    """The slices of embedding and output."""
    for module, kind, inputs, outputs in (
        ("model.embed_tokens", layout_pb2.SLICE_KIND_EMBEDDING, vocabulary, hidden),
        ("lm_head", layout_pb2.SLICE_KIND_LINEAR, hidden, vocabulary),
    ):
        layout.slices.add(
            module=module, kind=kind, in_features=inputs, out_features=outputs, is_replaceable=True
        )


def toy_layout(
    *,
    layers: int = 2,
    dtype: layout_pb2.TensorType = layout_pb2.TENSOR_TYPE_FLOAT32,
    max_rank: int = 64,
    max_pack_bytes: int = 0,
    biases: bool = False,
) -> layout_pb2.Layout:
    """The layout of a toy decoder, slices in the order that executors publish; q, k and v may have biases."""
    layout = layout_pb2.Layout(
        pack_format_version=2,
        base_digest="0" * 64,
        base_name="toy-base",
        compute_dtype=dtype,
        tensor_parallel_size=1,
        alignment_bytes=128,
        rank_multiple=8,
        max_rank=max_rank,
        max_pack_bytes=max_pack_bytes,
    )
    for layer in range(layers):
        for name, (inputs, outputs) in LINEARS.items():
            layout.slices.add(
                module=f"model.layers.{layer}.{name}",
                kind=layout_pb2.SLICE_KIND_LINEAR,
                in_features=inputs,
                out_features=outputs,
                has_bias=biases and name in BIASED,
            )
    add_ends(layout, HIDDEN, VOCABULARY)
    return layout


def toy_pack_layout(**options: Any) -> PackLayout:
    return read_layout(toy_layout(**options))


def lora_tensors(
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    *,
    rank: int = 4,
    ranks: dict[str, int] | None = None,
    layers: tuple[int, ...] = (0, 1),
    dtype: str = "F32",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Random LoRA tensors under PEFT's names; `ranks` overrides the rank of modules by their last part."""
    generator = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        values = generator.standard_normal(shape).astype(np.float32)
        tensors[f"base_model.model.{name}"] = values.astype(NUMPY[dtype])

    for target in targets:
        r = (ranks or {}).get(target, rank)
        if target == "embed_tokens":
            add("model.embed_tokens.lora_embedding_A", r, VOCABULARY)
            add("model.embed_tokens.lora_embedding_B", HIDDEN, r)
        elif target == "lm_head":
            add("lm_head.lora_A.weight", r, HIDDEN)
            add("lm_head.lora_B.weight", VOCABULARY, r)
        else:
            path = next(name for name in LINEARS if name.endswith(target))
            inputs, outputs = LINEARS[path]
            for layer in layers:
                add(f"model.layers.{layer}.{path}.lora_A.weight", r, inputs)
                add(f"model.layers.{layer}.{path}.lora_B.weight", outputs, r)
    return tensors


def lora_config(targets: tuple[str, ...] | str = ("q_proj", "v_proj"), **changes: Any) -> dict[str, Any]:
    """An adapter_config.json with PEFT's usual keys; `changes` replace or add keys."""
    config: dict[str, Any] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "somewhere/toy-base",
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(targets) if isinstance(targets, tuple) else targets,
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    }
    return config | changes


def write_adapter(
    folder: Path,
    tensors: dict[str, np.ndarray] | None = None,
    config: dict[str, Any] | None = None,
    *,
    shards: int = 0,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Writes an adapter folder: one safetensors file, or `shards` of them with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = lora_tensors() if tensors is None else tensors
    config = lora_config() if config is None else config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    metadata = {"format": "pt"} if metadata is None else metadata
    if not shards:
        save_file(tensors, folder / "adapter_model.safetensors", metadata=metadata)
        return folder
    weight_map = {}
    for shard in range(shards):
        name = f"adapter_model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        save_file(part, folder / name, metadata=metadata)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def fill_pack(plan: PackPlan, files: TensorFiles, target: memoryview | None) -> dict[str, TensorScan]:
    """All at once and alone. Returns what was seen of each tensor, and raises, as `PackFiller` does."""
    filler = PackFiller(plan, files)
    filler.fill(target)
    return filler.scans


def pack_bytes(plan: PackPlan, files: TensorFiles) -> bytes:
    """The pack that the store makes by a plan."""
    data = bytearray(plan.manifest.total_bytes)
    fill_pack(plan, files, memoryview(data))
    return bytes(data)


def packed(folder: Path, layout: PackLayout) -> tuple[layout_pb2.PackManifest, bytes]:
    """The manifest and the bytes of an adapter's pack, made from its folder."""
    opened = open_adapter(folder, layout)
    data = bytearray(b"\xa5" * opened.pack_bytes)
    return check_adapter(opened, memoryview(data)).manifest, bytes(data)


def effective_deltas(
    tensors: dict[str, np.ndarray], scalings: dict[str, float], layout: PackLayout
) -> dict[str, np.ndarray]:
    """scaling * B @ A of each module in float64 (embeddings: [hidden, vocabulary])."""
    deltas = {}
    for slice_ in layout.slices:
        prefix = f"base_model.model.{slice_.module}"
        names = (
            (".lora_embedding_A", ".lora_embedding_B")
            if slice_.is_embedding
            else (
                ".lora_A.weight",
                ".lora_B.weight",
            )
        )
        if prefix + names[0] in tensors:
            a, b = (tensors[prefix + name].astype(np.float64) for name in names)
            deltas[slice_.module] = scalings[slice_.module] * b @ a
    return deltas
