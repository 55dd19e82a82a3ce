"""Both spellings of `config.json`, and refusals that name the option."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from executor.model.config import ModelConfig
from tests.support.oracle_checkpoints import FAMILIES, MOE_FAMILIES

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
QWEN2 = LLAMA | {"model_type": "qwen2"}
QWEN2_MOE = LLAMA | {"model_type": "qwen2_moe"}
QWEN3 = LLAMA | {"model_type": "qwen3"}
QWEN3_MOE = LLAMA | {"model_type": "qwen3_moe"}
MISTRAL = LLAMA | {"model_type": "mistral"}
MIXTRAL = LLAMA | {"model_type": "mixtral"}
OLMOE = LLAMA | {"model_type": "olmoe"}


def parse(raw: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    return ModelConfig.parse(raw, generation or {})


@pytest.mark.parametrize("family", FAMILIES + MOE_FAMILIES)
def test_written_by_transformers(family: str, tmp_path: Path) -> None:
    hf = AutoConfig.for_model(family, hidden_size=96, num_attention_heads=6, num_key_value_heads=3)
    hf.save_pretrained(tmp_path)
    config = ModelConfig.load(tmp_path)
    assert config.family == family
    assert config.unrecognised == ()
    assert config.head_dim == (getattr(hf, "head_dim", None) or 16)
    assert (config.heads, config.kv_heads, config.layers) == (6, 3, hf.num_hidden_layers)
    assert config.norm_eps == hf.rms_norm_eps
    assert config.rope.theta == hf.rope_parameters["rope_theta"]
    assert config.windows == ((4096 if family == "mistral" else None),) * config.layers


@pytest.mark.parametrize("family", FAMILIES + MOE_FAMILIES)
def test_absent_options_take_the_familys_defaults(family: str) -> None:
    raw = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "rms_norm_eps")}
    raw |= {"model_type": family, "num_attention_heads": 32, "hidden_size": 128}
    hf = AutoConfig.for_model(**raw)
    config = parse(raw)
    assert config.kv_heads == hf.num_key_value_heads
    assert config.head_dim == (getattr(hf, "head_dim", None) or 4)
    assert config.norm_eps == hf.rms_norm_eps
    assert config.rope.theta == hf.rope_parameters["rope_theta"]
    assert config.tied_head == hf.tie_word_embeddings
    assert config.windows[0] == (hf.sliding_window if family == "mistral" else None)


def test_old_and_new_spellings_agree() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    original = {"original_max_position_embeddings": 64}
    old = LLAMA | {
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", **scaling, **original},
        "torch_dtype": "bfloat16",
    }
    new = LLAMA | {
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **scaling, **original},
        "dtype": "bfloat16",
    }
    assert parse(old) == parse(new)
    assert parse(old).dtype == "bfloat16"
    older = LLAMA | {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert parse(older).rope.factor == 2.0


def test_biases_and_norms_by_family() -> None:
    assert not parse(LLAMA).qkv_bias
    biased = parse(LLAMA | {"attention_bias": True, "mlp_bias": True})
    assert biased.qkv_bias
    assert biased.o_bias
    assert biased.mlp_bias
    qwen2 = parse(QWEN2)
    assert qwen2.qkv_bias
    assert not qwen2.o_bias
    assert (parse(QWEN2).qk_norm, parse(QWEN3).qk_norm, parse(OLMOE).qk_norm) == ("none", "heads", "whole")
    assert parse(QWEN2_MOE).qkv_bias
    assert not parse(QWEN2_MOE | {"qkv_bias": False}).qkv_bias
    assert parse(OLMOE | {"attention_bias": True}).o_bias
    assert parse(OLMOE).clip_qkv is None
    assert parse(OLMOE | {"clip_qkv": 8}).clip_qkv == 8.0
    assert not parse(MISTRAL).qkv_bias


def test_windows_per_layer() -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 16}
    assert parse(QWEN3 | windowed | {"max_window_layers": 1}).windows == (None, 16, 16)
    assert parse(QWEN3 | {"sliding_window": 16, "max_window_layers": 1}).windows == (None, None, None)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert parse(QWEN2 | windowed | {"layer_types": kinds}).windows == (16, None, 16)
    assert parse(MISTRAL | {"sliding_window": None}).windows == (None, None, None)
    assert parse(MISTRAL | {"sliding_window": 7}).windows == (7, 7, 7)
    assert parse(MIXTRAL | {"sliding_window": 7}).windows == (7, 7, 7)
    assert parse(MIXTRAL).windows == (None, None, None)
    assert parse(QWEN3_MOE | windowed | {"max_window_layers": 1}).windows == (16, 16, 16)
    assert parse(QWEN3_MOE | {"sliding_window": 16}).windows == (None, None, None)
    assert parse(QWEN2_MOE | windowed).windows == (16, None, 16)
    assert parse(QWEN2_MOE | windowed | {"max_window_layers": 2}).windows == (16, None, None)
    assert parse(QWEN2_MOE | {"use_sliding_window": False, "sliding_window": 0}).windows == (None,) * 3


def test_eos_ids_come_from_the_generation_config_first() -> None:
    assert parse(LLAMA).eos_ids == (2,)
    assert parse(LLAMA, {"eos_token_id": [9, 5, 9]}).eos_ids == (5, 9)
    assert parse(LLAMA, {"eos_token_id": 7}).eos_ids == (7,)
    assert parse(LLAMA, {"temperature": 0.5}).eos_ids == (2,)
    assert parse(LLAMA | {"eos_token_id": None}).eos_ids == ()


def test_yarn_extends_the_context() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert parse(LLAMA | {"rope_scaling": yarn}).context_length == 2048
    assert parse(LLAMA | {"rope_scaling": yarn, "max_position_embeddings": 2048}).context_length == 2048


def test_unknown_options_are_reported() -> None:
    assert parse(LLAMA | {"unheard_of": 1}).unrecognised == ("unheard_of",)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (
            LLAMA | {"model_type": "gemma3"},
            "'gemma3' is not .* are llama, mistral, qwen2, qwen3",
        ),
        ({}, "model_type None"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (LLAMA | {"hidden_size": None}, "lacks hidden_size"),
        (LLAMA | {"hidden_size": "64"}, "hidden_size must be a whole number"),
        (LLAMA | {"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        (LLAMA | {"head_dim": 15}, "head_dim 15 is odd"),
        (LLAMA | {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA | {"rms_norm_eps": -1}, "rms_norm_eps must be greater than 0"),
        (LLAMA | {"eos_token_id": 256}, "eos_token_id 256"),
        (LLAMA | {"eos_token_id": "</s>"}, "eos_token_id"),
        (LLAMA | {"sliding_window": 8}, "sliding_window is not supported for llama"),
        (MISTRAL | {"sliding_window": 0}, "sliding_window must be"),
        (MISTRAL | {"attention_bias": True}, "attention_bias is not supported for mistral"),
        (QWEN3 | {"mlp_bias": True}, "mlp_bias is not supported for qwen3"),
        (MISTRAL | {"layer_types": ["full_attention"] * 3}, "layer_types"),
        (QWEN3 | {"layer_types": ["full_attention"]}, "each of 3 layers"),
        (QWEN3 | {"layer_types": ["chunked_attention"] * 3}, "'chunked_attention' is not supported"),
        (QWEN3 | {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window"),
        (LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        (LLAMA | {"rope_scaling": {"rope_type": "longrope"}}, "default, linear, llama3, yarn"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "lacks factor"),
        (LLAMA | {"rope_scaling": {"type": "default", "mrope_section": [1]}}, "mrope_section"),
        (LLAMA | {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (LLAMA | {"num_experts": 8}, "num_experts"),
        (LLAMA | {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        (QWEN2 | {"clip_qkv": 8.0}, "clip_qkv is not supported for qwen2"),
        (OLMOE | {"clip_qkv": 0}, "clip_qkv must be greater than 0"),
        (OLMOE | {"head_dim": 32}, "head_dim 32 is not supported for olmoe"),
        (OLMOE | {"sliding_window": 8}, "sliding_window is not supported for olmoe"),
        (QWEN2_MOE | {"attention_bias": True}, "attention_bias is not supported for qwen2_moe"),
        (QWEN3_MOE | {"qkv_bias": True}, "qkv_bias is not supported for qwen3_moe"),
        (MIXTRAL | {"mlp_bias": True}, "mlp_bias is not supported for mixtral"),
    ],
)
def test_refusals_name_the_option(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(raw)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        ModelConfig.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        ModelConfig.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="JSON object"):
        ModelConfig.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert ModelConfig.load(tmp_path).eos_ids == (3, 4)
