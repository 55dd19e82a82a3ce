"""The forms in which adapters have LoRA for experts, for tests of the store."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.store_adapters import lora_config, write_adapter
from tests.support.store_experts import (
    NAMES,
    Truth,
    alone,
    expert_lora,
    named,
    nested,
    old,
    plain,
    solid,
    turned,
)

BOTH = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
MODULES = {"target_modules": list(NAMES)}
W = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
OWN = {name: name for name in NAMES}
GATE_UP = {"gate_up_proj": "gate_up_proj", "down_proj": "down_proj"}

FUSED = expert_lora()
SHARED = expert_lora(is_fused=False, is_shared=True, seed=1)
FUSED_SHARED = expert_lora(is_shared=True, seed=2)
FREE = expert_lora(is_fused=False, seed=3)

Form = tuple[list[Truth], dict[str, np.ndarray], dict[str, Any]]
"""What the experts have, the tensors, and the config's options."""


def expert_forms() -> dict[str, Form]:
    """Adapters of the toy model with experts, one in each form that is served."""
    return {
        "one by one": (FREE, alone(FREE), MODULES),
        "one by one, by a pattern": (FREE, alone(FREE), {"target_modules": r".*\.experts\.\d+\.\w+_proj"}),
        "one by one, all-linear": (FREE, alone(FREE), {"target_modules": "all-linear"}),
        "one by one, by whole paths": (
            FREE,
            alone(FREE),
            {"target_modules": sorted({name[17:-14] for name in alone(FREE)})},
        ),
        "Mixtral's, by whole paths": (
            FREE,
            alone(FREE, "block_sparse_moe.experts", ("w1", "w3", "w2")),
            {
                "target_modules": sorted(
                    {n[17:-14] for n in alone(FREE, "block_sparse_moe.experts", ("w1", "w3", "w2"))}
                )
            },
        ),
        "Mixtral's": (
            FREE,
            alone(FREE, "block_sparse_moe.experts", ("w1", "w3", "w2")),
            {"target_modules": ["w1", "w2", "w3"]},
        ),
        "Mixtral's, by a pattern": (
            FREE,
            alone(FREE, "block_sparse_moe.experts", ("w1", "w3", "w2")),
            {"target_modules": r".*block_sparse_moe\.experts\.\d\.w\d"},
        ),
        "parameters": (FUSED, nested(FUSED, plain), BOTH),
        "parameters by their last names": (
            FUSED,
            nested(FUSED, plain),
            {"target_modules": [], "target_parameters": ["down_proj", "gate_up_proj"]},
        ),
        "parameters, named as modules": (FUSED, nested(FUSED, plain), MODULES),
        "parameters of PEFT 0.19.0": (FUSED, nested(FUSED, old), BOTH | {"peft_version": "0.19.0"}),
        "parameters, transposed": (FUSED, nested(FUSED, turned), BOTH),
        "parameters of three dimensions": (FUSED, nested(FUSED, solid), BOTH),
        "parameters, shared": (FUSED_SHARED, nested(FUSED_SHARED, solid), BOTH),
        "w1, w2, w3": (FREE, named(FREE, W), MODULES),
        "w1, w2, w3, all-linear": (FREE, named(FREE, W), {"target_modules": "all-linear"}),
        "w1, w2, w3, shared": (SHARED, named(SHARED, W), MODULES),
        "projections, shared": (SHARED, named(SHARED, OWN), MODULES),
        "gate_up and down, shared": (FUSED_SHARED, named(FUSED_SHARED, GATE_UP), MODULES),
        "gate_up and down": (FUSED, named(FUSED, GATE_UP), MODULES),
    }


def write_expert_forms(folder: Path) -> list[Path]:
    """One adapter of each form below `folder`, but for all-linear, which would need attention's too."""
    return [
        write_adapter(folder / str(number), tensors, lora_config(**options))
        for number, (_, tensors, options) in enumerate(expert_forms().values())
        if options["target_modules"] != "all-linear"
    ]
