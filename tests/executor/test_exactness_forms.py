"""Forms of checkpoints one by one against transformers: rope types, windows, heads, shards, dtypes."""

import json
import random
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from executor.control.request import SamplingParams
from tests.support.oracle_adapters import make_adapters
from tests.support.oracle_checkpoints import FAMILIES, MOE_FAMILIES, make_checkpoint
from tests.support.oracle_reference import Oracle
from tests.support.oracle_serving import Answer, Ask, Server

WINDOWED = {"use_sliding_window": True, "sliding_window": 9}

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "rope llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "rope yarn": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "rope yarn, attention factor": (
        "mistral",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 16.0,
                "original_max_position_embeddings": 32,
                "attention_factor": 1.7,
                "beta_fast": 8.0,
            }
        },
    ),
    "window in all layers": ("mistral", {"sliding_window": 9}),
    "window in late layers": ("qwen2", {**WINDOWED, "max_window_layers": 1}),
    "window by layer types": (
        "qwen3",
        {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "window never used": ("qwen3", {"use_sliding_window": False, "sliding_window": 9}),
    "tied llama": ("llama", {"tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False}),
    "untied qwen3": ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}),
    "one KV head": ("llama", {"num_key_value_heads": 1}),
    "as many KV heads": ("qwen2", {"num_key_value_heads": 4}),
    "derived head size": ("mistral", {"head_dim": None}),
    "shards": ("qwen2", {"max_shard_size": "60KB"}),
    "shares not normalised": ("qwen3_moe", {"norm_topk_prob": False}),
    "shares normalised": ("olmoe", {"norm_topk_prob": True}),
    "one expert": ("mixtral", {"num_experts_per_tok": 1}),
    "all experts": ("qwen2_moe", {"num_experts_per_tok": 5}),
    "all layers dense": ("qwen3_moe", {"decoder_sparse_step": 4}),
    "no layer dense": ("qwen2_moe", {"decoder_sparse_step": 1, "qkv_bias": False}),
    "window in all layers with experts": ("mixtral", {"sliding_window": 9}),
    "window in layers with optional windows": ("qwen3_moe", WINDOWED),
    "window by default layers": ("qwen2_moe", {**WINDOWED, "max_window_layers": 2}),
    "clip none": ("olmoe", {"clip_qkv": None}),
    "untied qwen3_moe": ("qwen3_moe", {"tie_word_embeddings": False, "attention_bias": True}),
    "olmoe with biases": ("olmoe", {"attention_bias": True, "num_key_value_heads": 4}),
    "shards of experts": ("olmoe", {"max_shard_size": "60KB"}),
}

MATTERS = ("rope", "window in", "window by", "shares", "one expert", "all experts", "clip")


def make_asks(adapters: tuple[str, ...]) -> list[Ask]:
    rng = random.Random(11)
    sampling = SamplingParams(max_tokens=10, logprobs=2, prompt_logprobs=0)
    lengths = (1, 5, 9, 10, 33, 60)
    return [
        Ask(prompt=tuple(rng.randrange(256) for _ in range(length)), adapter=adapter, sampling=sampling)
        for length in lengths
        for adapter in adapters
    ]


def compare(checkpoint: Path, adapters: dict[str, Path]) -> list[Answer]:
    answers = Server(checkpoint, adapters, chunk=16).serve(make_asks(("", *adapters)))
    assert Oracle(checkpoint, adapters).judge(answers).positions >= 60
    return answers


@pytest.mark.parametrize("form", FORMS)
def test_form(form: str, tmp_path: Path) -> None:
    family, options = FORMS[form]
    checkpoint = make_checkpoint(tmp_path / "model", family, **options)
    forms = ["attention", "dora ends"] if family in MOE_FAMILIES else ["patterns", "ends"]
    adapters = make_adapters(checkpoint, tmp_path / "adapters", forms)
    compare(checkpoint, adapters)


@pytest.mark.parametrize("form", [name for name in FORMS if name.startswith(MATTERS)])
def test_form_matters(form: str, tmp_path: Path) -> None:
    """The option changes the oracle's answers; otherwise the comparison above would show nothing."""
    family, options = FORMS[form]
    ids = make_asks(("",))[-1].prompt
    plain = Oracle(make_checkpoint(tmp_path / "plain", family), {}).logprobs("", ids)
    changed = Oracle(make_checkpoint(tmp_path / "changed", family, **options), {}).logprobs("", ids)
    assert (plain - changed).abs().max() > 1e-2


def test_checkpoints_of_older_transformers(tmp_path: Path) -> None:
    """`rope_theta` beside `rope_scaling`, `torch_dtype`, a tied head's own copy, recomputed frequencies."""
    form = FORMS["rope llama3"][1]
    checkpoint = make_checkpoint(tmp_path, "llama", **form)
    expected = [answer.tokens for answer in compare(checkpoint, {})]
    path = checkpoint / "config.json"
    raw = json.loads(path.read_text())
    scaling = raw.pop("rope_parameters")
    raw["rope_theta"] = scaling.pop("rope_theta")
    raw["rope_scaling"] = scaling
    raw["torch_dtype"] = raw.pop("dtype")
    path.write_text(json.dumps(raw))
    assert [answer.tokens for answer in compare(checkpoint, {})] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_by_tolerance(family: str, tmp_path: Path) -> None:
    """As far from float32 as transformers in bfloat16, and another token only where that has nearly a tie.

    Logits here are below 4, where bfloat16 counts in steps of 1/64; 0.05 is three of them.
    """
    checkpoint = make_checkpoint(tmp_path / "model", family)
    adapters = make_adapters(checkpoint, tmp_path / "adapters", ["attention", "mlp", "ends"])
    answers = Server(checkpoint, adapters, dtype=torch.bfloat16, chunk=16).serve(make_asks(("", *adapters)))
    rounded, exact = Oracle(checkpoint, adapters, dtype=torch.bfloat16), Oracle(checkpoint, adapters)
    ours, theirs, apart = [], [], []
    for answer in answers:
        first, ids = len(answer.ask.prompt) - 1, [*answer.ask.prompt, *answer.tokens]
        expected = rounded.logprobs(answer.ask.adapter, ids)[first:]
        true = exact.logprobs(answer.ask.adapter, ids)[first:]
        for i, token in enumerate(answer.tokens):
            assert expected[i].max() - expected[i, token] < 0.05
            apart.append(abs(expected[i, token].item() - answer.logprobs[i]))
            ours.append(abs(true[i, token].item() - answer.logprobs[i]))
            theirs.append(abs(true[i, token].item() - expected[i, token].item()))
    assert max(theirs) > 1e-3, "bfloat16 has not been used"
    assert sum(ours) < 1.3 * sum(theirs)
    assert max(apart) < 0.1


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_bfloat16_with_experts_by_tolerance(family: str, tmp_path: Path) -> None:
    """Rounding may choose another expert, here as there: no bound for any one token, but as close in all."""
    checkpoint = make_checkpoint(tmp_path / "model", family)
    asks = make_asks(("", "", ""))
    answers = Server(checkpoint, {}, dtype=torch.bfloat16, chunk=16).serve(asks)
    rounded, exact = Oracle(checkpoint, {}, dtype=torch.bfloat16), Oracle(checkpoint, {})
    ours, theirs, apart = [], [], []
    for answer in answers:
        prompt = answer.ask.prompt
        expected, true = rounded.logprobs("", prompt), exact.logprobs("", prompt)
        for position, logprob in answer.prompt_logprobs.items():
            place = position - 1, prompt[position]
            ours.append(abs(true[place].item() - logprob))
            theirs.append(abs(true[place].item() - expected[place].item()))
            apart.append(abs(expected[place].item() - logprob))
    assert max(theirs) > 1e-3, "bfloat16 has not been used"
    assert sum(ours) < 1.3 * sum(theirs)
    assert median(apart) < 0.03
