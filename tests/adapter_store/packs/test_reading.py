"""Which adapters are served, and with which words the others are refused."""

import json

import numpy as np
import pytest

from adapter_store.formats import coverage
from adapter_store.packs.reading import read_adapter
from rpc.errors import LorikeetError
from tests.support.store_adapters import (
    HIDDEN,
    VOCABULARY,
    lora_config,
    lora_tensors,
    toy_pack_layout,
    write_adapter,
)

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def read(folder, tensors=None, config=None, **layout):
    return read_adapter(write_adapter(folder, tensors, config), toy_pack_layout(**layout))


def refusal(folder, tensors=None, config=None, **layout) -> LorikeetError:
    with pytest.raises(LorikeetError) as caught:
        read(folder, tensors, config, **layout)
    assert caught.value.code.name in ("INVALID_ARGUMENT", "UNIMPLEMENTED")
    return caught.value


def test_a_plain_adapter_is_matched_to_the_layout(tmp_path):
    checked = read(tmp_path)
    assert [(s.slice.module, s.rank, s.scaling) for s in checked.slices] == [
        ("model.layers.0.self_attn.q_proj", 4, 2.0),
        ("model.layers.0.self_attn.v_proj", 4, 2.0),
        ("model.layers.1.self_attn.q_proj", 4, 2.0),
        ("model.layers.1.self_attn.v_proj", 4, 2.0),
    ]
    assert [s.slice.index for s in checked.slices] == [0, 2, 7, 9]
    assert checked.notes == ()


def test_patterns_decide_rank_and_scaling_per_module(tmp_path):
    targets = ("q_proj", "v_proj", "down_proj")
    config = lora_config(targets, rank_pattern={"q_proj": 2, "down_proj": 16}, alpha_pattern={"v_proj": 1})
    checked = read(tmp_path, lora_tensors(targets, ranks={"q_proj": 2, "down_proj": 16}), config)
    found = {s.slice.module: (s.rank, s.scaling) for s in checked.slices}
    assert found["model.layers.1.self_attn.q_proj"] == (2, 4.0)
    assert found["model.layers.1.self_attn.v_proj"] == (4, 0.25)
    assert found["model.layers.1.mlp.down_proj"] == (16, 0.5)
    assert checked.max_rank == 16


def test_patterns_that_take_too_long_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "_PATTERN_SECONDS", 0.2)
    # Each takes some 10 ms a module.
    patterns = {".*.*.*.*.*.*" + "!" * (1 + number): 4 for number in range(100)}
    error = refusal(tmp_path, config=lora_config(rank_pattern=patterns))
    assert error.reason == "PATTERN_TOO_COMPLEX"


def test_chosen_layers_only(tmp_path):
    checked = read(tmp_path, lora_tensors(layers=(1,)), lora_config(layers_to_transform=[1]))
    assert {s.slice.module.split(".")[2] for s in checked.slices} == {"1"}


def test_copies_of_base_weights_are_checked_and_left_out(tmp_path):
    targets = ("embed_tokens", "lm_head")
    tensors = lora_tensors(targets)
    plain = read(tmp_path / "plain", tensors, lora_config(targets))
    copies = {
        "base_model.model.lm_head.base_layer.weight": np.ones((VOCABULARY, HIDDEN), "f4"),
        "base_model.model.model.embed_tokens.base_layer.weight": np.ones((VOCABULARY, HIDDEN), "f4"),
    }
    checked = read(tmp_path / "copies", tensors | copies, lora_config(targets))
    assert checked.digest == plain.digest
    assert [note.split(":")[0] for note in checked.notes] == ["lm_head", "model.embed_tokens"]
    copies["base_model.model.lm_head.base_layer.weight"] = np.ones((VOCABULARY + 1, HIDDEN), "f4")
    error = refusal(tmp_path / "grown", tensors | copies, lora_config(targets))
    assert error.reason == "WRONG_VOCABULARY"
    assert "lm_head.base_layer.weight is [41, 16], this base needs [40, 16]" in error.message


def test_tied_embeddings_may_bring_a_head_that_no_target_names(tmp_path):
    tensors = lora_tensors(("embed_tokens", "lm_head"))
    config = lora_config(("embed_tokens", "model.embed_tokens"), ensure_weight_tying=True)
    assert len(read(tmp_path, tensors, config).slices) == 2


def test_idle_modules_are_said(tmp_path):
    tensors = lora_tensors(layers=(0,))
    tensors[f"{Q0}.lora_B.weight"][:] = -0.0
    checked = read(tmp_path / "one", tensors, lora_config(layers_to_transform=[0]))
    assert checked.notes == (
        "model.layers.0.self_attn.q_proj: changes nothing (a zero lora_A, lora_B or scaling)",
    )
    checked = read(tmp_path / "all", config=lora_config(lora_alpha=0))
    assert checked.notes == (
        "the adapter changes nothing: every module has a zero lora_A, lora_B or scaling",
    )


def test_another_base_of_the_same_shapes_is_said(tmp_path):
    checked = read(tmp_path, config=lora_config(base_model_name_or_path="org/Other-Base"))
    assert "trained on 'org/Other-Base', this server runs 'toy-base'" in checked.notes[0]


def with_tensor(name: str, *shape: int, dtype: str = "f4") -> dict[str, np.ndarray]:
    return lora_tensors() | {name: np.ones(shape, dtype)}


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("base_model.model.model.norm.bias", "bias"),
        ("base_model.model.model.norm.weight", "modules_to_save"),
        (f"{Q0}.weight", "modules_to_save"),
        (
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            "trainable_token_indices",
        ),
    ],
)
def test_tensors_of_unsupported_options_name_the_option(tmp_path, name, option):
    error = refusal(tmp_path, with_tensor(name, 4, 4))
    assert (error.code.name, error.reason) == ("UNIMPLEMENTED", "UNSUPPORTED_TENSOR")
    assert name in error.message
    assert error.metadata["option"] == option


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "UNKNOWN_TENSOR", "is this a PEFT adapter?"),
        (f"{Q0}.lora_C.weight", "UNKNOWN_TENSOR", "not a name that PEFT gives"),
        (f"{Q0}.lora_A.default.weight", "UNKNOWN_TENSOR", "not a name that PEFT gives"),
        (f"{Q0}.lora_embedding_A", "UNKNOWN_TENSOR", "is a linear layer of this base"),
        (f"{Q0}.base_layer.weight", "UNKNOWN_TENSOR", "a copy of a base weight has no meaning here"),
        (
            "base_model.model.model.embed_tokens.lora_A.weight",
            "UNKNOWN_TENSOR",
            "is an embedding of this base",
        ),
        (
            "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight",
            "UNKNOWN_MODULE",
            "the base 'toy-base' has no module model.layers.7.self_attn.q_proj",
        ),
    ],
)
def test_unknown_tensors_are_refused(tmp_path, name, reason, message):
    error = refusal(tmp_path, with_tensor(name, 4, 16))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", reason)
    assert name in error.message
    assert message in error.message


@pytest.mark.parametrize(
    ("part", "shape", "needed"),
    [
        ("lora_A", (4, 17), "[rank, 16]"),
        ("lora_A", (4, 16, 1), "[rank, 16]"),
        ("lora_B", (31, 4), "[32, 4]"),
        ("lora_B", (32, 5), "[32, 4]"),
    ],
)
def test_wrong_shapes_are_refused(tmp_path, part, shape, needed):
    error = refusal(tmp_path, with_tensor(f"{Q0}.{part}.weight", *shape))
    assert error.reason == "WRONG_SHAPE"
    assert f"{Q0}.{part}.weight is {list(shape)}, this base needs {needed}" in error.message


def test_a_wrong_shape_points_at_another_base(tmp_path):
    error = refusal(
        tmp_path, with_tensor(f"{Q0}.lora_A.weight", 4, 32), lora_config(base_model_name_or_path="org/Other")
    )
    assert "trained on 'org/Other', this server runs 'toy-base'" in error.message


@pytest.mark.parametrize(("gone", "left"), [("lora_A", "lora_B"), ("lora_B", "lora_A")])
def test_a_lone_half_is_refused(tmp_path, gone, left):
    tensors = lora_tensors()
    del tensors[f"{Q0}.{gone}.weight"]
    error = refusal(tmp_path, tensors)
    assert error.reason == "MISSING_PARTNER"
    assert f"{Q0}.{left}.weight has no {gone}" in error.message


def test_ranks_that_disagree_with_the_config_are_refused(tmp_path):
    error = refusal(tmp_path, config=lora_config(r=8))
    assert error.reason == "RANK_MISMATCH"
    assert "model.layers.0.self_attn.q_proj: its tensors have rank 4, its config says 8" in error.message


def test_a_rank_above_the_executors_maximum_is_refused(tmp_path):
    error = refusal(tmp_path, max_rank=3)
    assert error.reason == "RANK_TOO_LARGE"
    assert "rank 4 is above the executor's maximum of 3" in error.message


@pytest.mark.parametrize("dtype", ["f8", "i4", "u1"])
def test_other_dtypes_are_refused(tmp_path, dtype):
    error = refusal(tmp_path, with_tensor(f"{Q0}.lora_A.weight", 4, 16, dtype=dtype))
    assert (error.code.name, error.reason) == ("UNIMPLEMENTED", "UNSUPPORTED_DTYPE")
    assert "save the adapter as float32" in error.message


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, dtype, value):
    tensors = lora_tensors(dtype=dtype)
    tensors[f"{Q0}.lora_B.weight"][3, 1] = value
    error = refusal(tmp_path, tensors)
    assert error.reason == "NOT_FINITE"
    assert f"{Q0}.lora_B.weight" in error.message


def test_an_adapter_without_tensors_is_refused(tmp_path):
    assert refusal(tmp_path, {}).reason == "NO_TENSORS"


def test_a_target_without_tensors_is_refused(tmp_path):
    error = refusal(tmp_path, config=lora_config(("q_proj", "v_proj", "k_proj")))
    assert error.reason == "MISSING_TENSORS"
    assert "model.layers.0.self_attn.k_proj" in error.message
    assert "nor for 1 other" in error.message
    error = refusal(tmp_path, lora_tensors(layers=(0,)))
    assert error.reason == "MISSING_TENSORS"


def test_a_target_that_the_base_lacks_is_refused(tmp_path):
    error = refusal(tmp_path, config=lora_config(("q_proj", "v_proj", "query_key_value")))
    assert error.reason == "UNKNOWN_TARGET"
    assert "'query_key_value' names nothing" in error.message


def test_tensors_that_the_config_does_not_target_are_refused(tmp_path):
    error = refusal(tmp_path, config=lora_config(("q_proj",)))
    assert error.reason == "UNTARGETED_MODULE"
    assert "model.layers.0.self_attn.v_proj" in error.message


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_decides_nothing_is_refused(tmp_path, option):
    error = refusal(tmp_path, config=lora_config() | {option: {"k_proj": 4}})
    assert error.reason == "UNUSED_PATTERN"
    assert f"{option}: 'k_proj'" in error.message


def test_a_huge_config_is_refused(tmp_path):
    folder = write_adapter(tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps(lora_config(x=None)) + " " * (5 << 20))
    with pytest.raises(LorikeetError, match=r"adapter_config.json is larger"):
        read_adapter(folder, toy_pack_layout())


def test_configs_of_every_shape_are_read_or_refused(tmp_path):
    folder, layout = write_adapter(tmp_path), toy_pack_layout()
    values = [None, 0, -1, 1.5, "x", "", [], {}, [None], {"a": None}, True, 10**30, ["\ud800"], {"\ud800": 1}]
    outcomes = set()
    for option in lora_config():
        for value in values:
            (folder / "adapter_config.json").write_text(json.dumps(lora_config() | {option: value}))
            outcomes.add(outcome(folder, layout))
    assert outcomes == {"read", "INVALID_ARGUMENT", "UNIMPLEMENTED"}


def outcome(folder, layout) -> str:
    try:
        read_adapter(folder, layout)
    except LorikeetError as error:
        error.message.encode()
        return error.code.name
    return "read"
