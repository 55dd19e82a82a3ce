"""Random adapters of many forms, made and written by PEFT itself, and packed by the adapter store."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapter_store.formats.layout import read_layout
from adapter_store.formats.packing import write_pack
from adapter_store.formats.plan import plan_pack
from adapter_store.formats.reading import read_adapter
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
        model.save_pretrained(made[name])
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """An adapter in pool layout."""

    data: bytes
    manifest: layout_pb2.PackManifest


def pack_adapter(folder: Path, layout: layout_pb2.Layout) -> Pack:
    """What the adapter store makes of a PEFT folder."""
    checked = read_adapter(folder, pack_layout := read_layout(layout))
    plan = plan_pack(checked.digest, checked.slices, pack_layout)
    data = io.BytesIO()
    write_pack(plan, checked.files, data.write)
    return Pack(data=data.getvalue(), manifest=plan.manifest)
