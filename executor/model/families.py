"""Where the supported families of checkpoints differ from one another, but for their experts."""

from dataclasses import dataclass
from typing import Literal

QkNorm = Literal["none", "heads", "whole"]
"""Queries and keys are normed head by head, or over all heads at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Options that a family has, and their defaults."""

    attention_bias: Literal["option", "qkv", "qkv_option", "none"]
    mlp_bias: bool = False
    qk_norm: QkNorm = "none"
    clips_qkv: bool = False
    window: Literal["none", "all_layers", "by_layer"] = "none"
    window_is_optional: bool = False  # use_sliding_window says whether there is one
    windows_early_layers: bool = False  # by layer: even layers below max_window_layers, not those above it
    default_head_dim: int | None = None  # None: hidden_size // num_attention_heads
    default_kv_heads: int | None = None  # None: as many as query heads
    default_window: int | None = None
    default_eps: float = 1e-6
    default_theta: float = 10_000.0


FAMILIES = {
    "llama": Family(attention_bias="option", mlp_bias=True),
    "mistral": Family(attention_bias="none", window="all_layers", default_kv_heads=8, default_window=4096),
    "qwen2": Family(
        attention_bias="qkv",
        window="by_layer",
        window_is_optional=True,
        default_kv_heads=32,
        default_window=4096,
    ),
    "qwen3": Family(
        attention_bias="option",
        qk_norm="heads",
        window="by_layer",
        window_is_optional=True,
        default_head_dim=128,
        default_kv_heads=32,
        default_window=4096,
    ),
    "qwen2_moe": Family(
        attention_bias="qkv_option",
        window="by_layer",
        window_is_optional=True,
        windows_early_layers=True,
        default_kv_heads=16,
        default_window=4096,
    ),
    "qwen3_moe": Family(
        attention_bias="option",
        qk_norm="heads",
        window="all_layers",
        window_is_optional=True,
        default_kv_heads=4,
        default_window=4096,
    ),
    "mixtral": Family(
        attention_bias="none",
        window="all_layers",
        default_kv_heads=8,
        default_eps=1e-5,
        default_theta=1_000_000.0,
    ),
    "olmoe": Family(attention_bias="option", qk_norm="whole", clips_qkv=True, default_eps=1e-5),
}
