"""What a checkpoint's `config.json` says about its arithmetic: honoured or refused, never ignored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.model.expert_options import EXPERT_FAMILIES, ExpertsConfig
from executor.model.families import FAMILIES, Family, QkNorm
from executor.model.options import flag, integer, number
from executor.model.rope import RopeConfig

# Options of other architectures that would change the arithmetic here, each with its values that change
# nothing.
_INACTIVE: dict[str, tuple[Any, ...]] = {
    "attention_chunk_size": (None, 0),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None,),
    "embedding_multiplier": (None, 1.0),
    "final_logit_softcapping": (None,),
    "layernorm_zero_centered": (None, False),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "no_rope_layers": (None, []),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": (None, 1.0),
    "use_mrope": (None, False),
}

_EXPERTS_INACTIVE: dict[str, tuple[Any, ...]] = {"num_experts": (None, 0), "num_local_experts": (None, 0)}

_HONOURED = {
    "attention_bias",
    "clip_qkv",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "qkv_bias",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "use_sliding_window",
    "vocab_size",
}

# Training, bookkeeping and generation defaults: without effect on a forward pass.
_WITHOUT_EFFECT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "hidden_dropout",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder, whatever family it came from. `windows` holds each layer's sliding window, None for all;
    queries, keys and values are clipped to `clip_qkv` either way; `experts` is None where all layers are
    dense, of `intermediate_size`.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    context_length: int
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: QkNorm
    clip_qkv: float | None
    tied_head: bool
    windows: tuple[int | None, ...]
    experts: ExpertsConfig | None
    dtype: str
    eos_ids: tuple[int, ...]
    unrecognised: tuple[str, ...] = ()
    """Options of `config.json` that neither this package nor the family's own implementation reads."""

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """What takes the place of a layer's MLP, or None where it is dense."""
        return self.experts if self.experts is not None and self.experts.layers[layer] else None

    @classmethod
    def load(cls, folder: Path) -> "ModelConfig":
        """Read `config.json` and, where present, `generation_config.json` of a model folder.

        Raises ValueError saying which option is missing, malformed or not supported.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder} holds no config.json; name a folder with a Hugging Face checkpoint")
        generation = folder / "generation_config.json"
        return cls.parse(_read_object(path), _read_object(generation) if generation.is_file() else {})

    @classmethod
    def parse(cls, raw: Mapping[str, Any], generation: Mapping[str, Any]) -> "ModelConfig":
        """From the two files' contents. Raises ValueError as `load` does."""
        name = raw.get("model_type")
        family = FAMILIES.get(str(name))
        if family is None:
            raise ValueError(f"model_type {name!r} is not supported; supported are {', '.join(FAMILIES)}")
        _refuse_active(raw, str(name), family)
        layers = integer(raw, "num_hidden_layers")
        hidden_size, heads = integer(raw, "hidden_size"), integer(raw, "num_attention_heads")
        kv_heads = integer(raw, "num_key_value_heads", default=family.default_kv_heads or heads)
        if heads % kv_heads:
            raise ValueError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )
        head_dim = integer(raw, "head_dim", default=family.default_head_dim or hidden_size // heads)
        if head_dim % 2:
            raise ValueError(f"head_dim {head_dim} is odd; rotary embedding needs pairs")
        max_positions = integer(raw, "max_position_embeddings")
        rope = RopeConfig.parse(raw, max_positions=max_positions, default_theta=family.default_theta)
        eos = generation.get("eos_token_id")
        vocab_size = integer(raw, "vocab_size")
        qkv_bias, o_bias = _attention_biases(raw, family)
        if family.qk_norm == "whole" and heads * head_dim != hidden_size:
            raise ValueError(
                f"head_dim {head_dim} is not supported for {name} checkpoints; remove the option"
            )
        return cls(
            family=str(name),
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=integer(raw, "intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=number(raw, "rms_norm_eps", default=family.default_eps, above=0),
            rope=rope,
            context_length=_context_length(rope, max_positions),
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            mlp_bias=family.mlp_bias and flag(raw, "mlp_bias"),
            qk_norm=family.qk_norm,
            clip_qkv=number(raw, "clip_qkv", above=0) if raw.get("clip_qkv") is not None else None,
            tied_head=flag(raw, "tie_word_embeddings"),
            windows=_windows(raw, str(name), family, layers),
            experts=ExpertsConfig.parse(raw, str(name), layers),
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
            eos_ids=_eos_ids(eos if eos is not None else raw.get("eos_token_id"), vocab_size),
            unrecognised=_unrecognised(raw, str(name)),
        )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return raw


def _unrecognised(raw: Mapping[str, Any], name: str) -> tuple[str, ...]:
    known = _HONOURED | _WITHOUT_EFFECT | _INACTIVE.keys() | _EXPERTS_INACTIVE.keys()
    return tuple(sorted(raw.keys() - known - ExpertsConfig.options_of(name)))


def _refuse_active(raw: Mapping[str, Any], name: str, family: Family) -> None:
    refused = _INACTIVE if name in EXPERT_FAMILIES else _INACTIVE | _EXPERTS_INACTIVE
    for option, inactive in refused.items():
        if raw.get(option) not in inactive:
            raise ValueError(
                f"{option} = {raw[option]!r} is not supported for {name} checkpoints; remove the option"
            )
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {raw['hidden_act']!r} is not supported; supported is silu")
    if family.attention_bias in ("none", "qkv_option") and flag(raw, "attention_bias"):
        raise ValueError(f"attention_bias is not supported for {name} checkpoints")
    if family.attention_bias in ("none", "option") and flag(raw, "qkv_bias"):
        raise ValueError(f"qkv_bias is not supported for {name} checkpoints")
    if not family.clips_qkv and raw.get("clip_qkv") is not None:
        raise ValueError(f"clip_qkv is not supported for {name} checkpoints; remove the option")
    if not family.mlp_bias and flag(raw, "mlp_bias"):
        raise ValueError(f"mlp_bias is not supported for {name} checkpoints")


def _attention_biases(raw: Mapping[str, Any], family: Family) -> tuple[bool, bool]:
    """Whether q, k and v have biases, and whether o has one."""
    match family.attention_bias:
        case "option":
            both = flag(raw, "attention_bias")
            return both, both
        case "qkv":
            return True, False
        case "qkv_option":
            return flag(raw, "qkv_bias", default=True), False
        case "none":
            return False, False


def _windows(raw: Mapping[str, Any], name: str, family: Family, layers: int) -> tuple[int | None, ...]:
    """Each layer's window. Raises ValueError where the window options contradict each other or the family."""
    window = raw.get("sliding_window", family.default_window)
    if family.window_is_optional and not flag(raw, "use_sliding_window"):
        window = None
    if window is not None:
        window = integer({"sliding_window": window}, "sliding_window")
    if family.window == "none":
        if window is not None:
            raise ValueError(f"sliding_window is not supported for {name} checkpoints")
        expected = "full_attention"
    elif family.window == "all_layers":
        expected = "full_attention" if window is None else "sliding_attention"
    else:
        return _windows_by_layer(raw, window, layers, early=family.windows_early_layers)
    kinds = raw.get("layer_types")
    if kinds is not None and list(kinds) != [expected] * layers:
        raise ValueError(
            f"layer_types {kinds!r} is not supported for {name}: each of {layers} layers is {expected}"
        )
    return (window if family.window == "all_layers" else None,) * layers


def _windows_by_layer(
    raw: Mapping[str, Any], window: int | None, layers: int, *, early: bool
) -> tuple[int | None, ...]:
    kinds = raw.get("layer_types")
    if kinds is None:
        bound = integer(raw, "max_window_layers", default=28, least=0)
        return tuple(
            window if (layer < bound and layer % 2 == 0 if early else layer >= bound) else None
            for layer in range(layers)
        )
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ValueError(f"layer_types must name a kind for each of {layers} layers, got {kinds!r}")
    unknown = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(
            f"layer type {unknown[0]!r} is not supported; supported are full_attention and sliding_attention"
        )
    if window is None and "sliding_attention" in kinds:
        raise ValueError(
            "layer_types asks for sliding_attention, but use_sliding_window and sliding_window are not set"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _eos_ids(raw: Any, vocab_size: int) -> tuple[int, ...]:
    ids = raw if isinstance(raw, list) else [] if raw is None else [raw]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise ValueError(f"eos_token_id {token!r} is not a token id below vocab_size {vocab_size}")
    return tuple(sorted(set(ids)))


def _context_length(rope: RopeConfig, max_positions: int) -> int:
    # YaRN checkpoints state either the original or the extended length as their maximum.
    return (
        max(max_positions, int(rope.original_context * rope.factor))
        if rope.rope_type == "yarn"
        else max_positions
    )
