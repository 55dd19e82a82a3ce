"""PEFT's other forms of LoRA, for tests of the store."""

from typing import Any

import numpy as np

from tests.support.store_adapters import BIASED, HIDDEN, LINEARS, VOCABULARY, lora_config, lora_tensors


def toy_forms() -> dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Tensors and config of PEFT's other forms, for the toy layout with biases."""
    generator = np.random.default_rng(3)
    prefix = "base_model.model."

    def vectors(suffix: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        return {
            f"{prefix}model.layers.{layer}.{name}.{suffix}": generator.standard_normal(
                LINEARS[name][1], np.float32
            )
            for layer in (0, 1)
            for name in names
        }

    query, key, value = BIASED
    lora, own = lora_tensors(), vectors("base_layer.bias", (query, value))
    whole = generator.standard_normal((VOCABULARY, HIDDEN), np.float32)
    weights = {f"{prefix}{module}.weight": whole for module in ("lm_head", "model.embed_tokens")}
    return {
        "dora": (
            lora | own | vectors("lora_magnitude_vector", (query, value)),
            lora_config(use_dora=True, bias="lora_only"),
        ),
        "lora_bias": (
            lora | own | vectors("bias", (key,)) | vectors("lora_B.bias", (query, value)),
            lora_config(lora_bias=True, bias="all"),
        ),
        "saved": (lora | weights, lora_config(modules_to_save=["embed_tokens", "lm_head"])),
    }
