"""Random adapters of many forms, made and written by PEFT itself, and a plain packer for them."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lorikeet.v1 import layout_pb2

ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "mlp": {
        "r": 16,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": ["gate_proj", "up_proj", "down_proj"],
    },
    "patterns": {
        "r": 8,
        "lora_alpha": 12,
        "target_modules": ["q_proj", "v_proj", "down_proj", "up_proj"],
        "rank_pattern": {r".*layers\.1\.mlp\.down_proj": 24, "q_proj": 2},
        "alpha_pattern": {"v_proj": 20},
    },
    "one_layer": {
        "r": 32,
        "lora_alpha": 32,
        "target_modules": ["q_proj", "o_proj"],
        "layers_to_transform": [1],
    },
    "ends": {"r": 6, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head"]},
    "head": {"r": 3, "lora_alpha": 5, "target_modules": ["lm_head"]},
    "embedding": {"r": 10, "lora_alpha": 10, "target_modules": ["embed_tokens", "k_proj"]},
}


def make_adapters(checkpoint: Path, folder: Path, names: list[str] | None = None) -> dict[str, Path]:
    """Write adapters for a checkpoint, both matrices random, strong enough to change every answer."""
    made = {}
    for seed, name in enumerate(names or ADAPTERS):
        torch.manual_seed(100 + seed)
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[name]))
        with torch.no_grad():
            for tensor_name, parameter in model.named_parameters():
                if "lora_" in tensor_name:
                    parameter.copy_(torch.randn_like(parameter) * 0.5 * parameter.shape[-1] ** -0.5)
        made[name] = folder / name
        model.save_pretrained(made[name], save_embedding_layers=False)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """An adapter in pool layout."""

    data: bytes
    manifest: layout_pb2.PackManifest


def pack_adapter(folder: Path, layout: layout_pb2.Layout) -> Pack:
    """What a store would make of a PEFT folder, in as few lines as will do; checks nothing."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    dtype = {1: torch.float32, 2: torch.bfloat16, 3: torch.float16}[layout.compute_dtype]
    manifest = layout_pb2.PackManifest(digest=folder.name)
    data = bytearray()

    def append(matrix: torch.Tensor) -> int:
        offset = len(data)
        data.extend(matrix.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
        data.extend(bytes(-len(data) % 128))
        return offset

    for index, spec in enumerate(layout.slices):
        prefix = f"base_model.model.{spec.module}"
        if spec.kind == layout_pb2.SLICE_KIND_EMBEDDING:
            a, b = tensors.get(f"{prefix}.lora_embedding_A"), tensors.get(f"{prefix}.lora_embedding_B")
        else:
            a, b = tensors.get(f"{prefix}.lora_A.weight"), tensors.get(f"{prefix}.lora_B.weight")
        if a is None or b is None:
            continue
        rank = a.shape[0]
        padding = -rank % 8
        a = torch.nn.functional.pad(a, (0, 0, 0, padding))
        b = torch.nn.functional.pad(b, (0, padding))
        manifest.slices.add(
            slice=index,
            a_offset=append(a.t() if spec.kind == layout_pb2.SLICE_KIND_EMBEDDING else a),
            b_offset=append(b),
            padded_rank=rank + padding,
            rank=rank,
            scaling=_scaling(config, spec.module, rank),
        )
    manifest.total_bytes = len(data)
    return Pack(data=bytes(data), manifest=manifest)


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    alpha = config["lora_alpha"]
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            alpha = value
            break
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
