"""Random adapters of many forms, made and written by PEFT itself, and packed by the adapter store."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapter_store.formats.layout import read_layout
from adapter_store.packs.reading import read_adapter
from lorikeet.v1 import layout_pb2
from tests.support.engine_rig import Pack
from tests.support.store_adapters import pack_bytes

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

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
PEFT_FORMS: dict[str, dict[str, Any]] = {
    "dora": {"r": 8, "lora_alpha": 16, "use_dora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "wide dora": {
        "r": 64,
        "lora_alpha": 16,
        "use_dora": True,
        "use_rslora": True,
        "target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
    },
    "dora ends": {
        "r": 6,
        "lora_alpha": 6,
        "use_dora": True,
        "target_modules": ["embed_tokens", "lm_head", "o_proj"],
    },
    "lora_bias": {
        "r": 12,
        "lora_alpha": 8,
        "lora_bias": True,
        "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj", "lm_head"],
    },
    "all biases": {"r": 8, "lora_alpha": 8, "bias": "all", "target_modules": ["q_proj", "up_proj"]},
    "dora with biases": {
        "r": 16,
        "lora_alpha": 24,
        "use_dora": True,
        "bias": "lora_only",
        "target_modules": [*ATTENTION, "gate_proj"],
    },
    "saved head": {
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["v_proj"],
        "modules_to_save": ["lm_head"],
    },
    "saved ends": {
        "r": 8,
        "lora_alpha": 8,
        "use_dora": True,
        "target_modules": ["k_proj"],
        "modules_to_save": ["lm_head", "embed_tokens"],
    },
}
"""What PEFT's LoRA can do besides two matrices."""


def make_adapters(checkpoint: Path, folder: Path, names: list[str] | None = None) -> dict[str, Path]:
    """Write adapters for a checkpoint, both matrices random, strong enough to change every answer."""
    made = {}
    for seed, name in enumerate(names or ADAPTERS):
        torch.manual_seed(100 + seed)
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        options = (ADAPTERS | PEFT_FORMS)[name]
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for tensor_name, parameter in model.named_parameters():
                if "magnitude" in tensor_name:
                    parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
                elif "lora_" in tensor_name and not tensor_name.endswith("bias"):
                    parameter.copy_(torch.randn_like(parameter) * 0.5 * parameter.shape[-1] ** -0.5)
                elif parameter.requires_grad:  # a bias of any kind, or a saved module
                    parameter.add_(torch.randn_like(parameter) * 0.3 * (parameter.std() or 1.0))
        made[name] = folder / name
        model.save_pretrained(made[name])
    return made


def pack_adapter(folder: Path, layout: layout_pb2.Layout) -> Pack:
    """What the adapter store makes of a PEFT folder."""
    checked = read_adapter(folder, read_layout(layout))
    return Pack(data=pack_bytes(checked.plan, checked.files), manifest=checked.manifest)
