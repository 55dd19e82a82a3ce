"""The forms in which adapters have LoRA for experts: all of them make the same slices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_store.packs.reading import read_adapter
from lorikeet.v1 import layout_pb2
from rpc.errors import LorikeetError
from tests.support.store_adapters import NUMPY, lora_config, packed, write_adapter
from tests.support.store_expert_forms import BOTH, FREE, FUSED, expert_forms
from tests.support.store_experts import (
    EXPERTS,
    HIDDEN,
    NAMES,
    PREFIX,
    WIDTH,
    alone,
    deltas,
    expert_pack_layout,
    nested,
    old,
    packed_deltas,
    plain,
)

FORMS = expert_forms()


def write(folder: Path, tensors: dict[str, np.ndarray], options: dict[str, Any]) -> Path:
    attention = {}
    if options.get("target_modules") == "all-linear":
        attention = attention_tensors()
    return write_adapter(folder, tensors | attention, lora_config(**options))


def attention_tensors() -> dict[str, np.ndarray]:
    layout = expert_pack_layout()
    tensors = {}
    for slice_ in layout.slices:
        if ".self_attn." in slice_.module:
            tensors[f"{PREFIX}{slice_.module}.lora_A.weight"] = np.ones((4, slice_.inputs), np.float32)
            tensors[f"{PREFIX}{slice_.module}.lora_B.weight"] = np.ones((slice_.outputs, 4), np.float32)
    return tensors


@pytest.mark.parametrize("form", FORMS)
def test_every_form_makes_the_same_slices(tmp_path, form):
    truth, tensors, options = FORMS[form]
    found = packed_deltas(write(tmp_path, tensors, options), expert_pack_layout())
    expected = deltas(truth, 8 / 4)
    assert {module for module in found if ".experts." in module} == expected.keys()
    for module, delta in expected.items():
        np.testing.assert_allclose(found[module], delta, rtol=1e-12, atol=1e-12, err_msg=module)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_stored_once_is_packed_once(tmp_path, form):
    _, tensors, options = FORMS[form]
    _, data = packed(write(tmp_path, tensors, options), expert_pack_layout())
    attention = attention_tensors() if options.get("target_modules") == "all-linear" else {}
    stored = sum(values.nbytes for values in (tensors | attention).values())
    assert len(data) == 2 * stored  # rank 4, padded to 8


def test_notes_say_what_was_read_in_another_way(tmp_path):
    def notes(form):
        _, tensors, options = FORMS[form]
        checked = read_adapter(write(tmp_path / form, tensors, options), expert_pack_layout())
        return [note for note in checked.notes if "toy-base" not in note]

    assert notes("parameters") == []
    (note,) = notes("parameters, transposed")
    assert note.startswith("model.layers.0.mlp.experts.gate_up_proj and 3 other modules: lora_A or lora_B is")
    (note,) = notes("parameters of PEFT 0.19.0")
    assert note.startswith(
        "model.layers.0.mlp.experts.gate_up_proj and 3 other modules: stored as PEFT up to 0.19.0"
    )


def test_spellings_of_names_do_not_change_the_digest(tmp_path):
    def digest(form):
        _, tensors, options = FORMS[form]
        return read_adapter(write(tmp_path / form, tensors, options), expert_pack_layout()).digest

    assert digest("Mixtral's") == digest("one by one")
    assert digest("w1, w2, w3, shared") == digest("projections, shared")
    assert digest("parameters") == digest("parameters, named as modules")
    different = [
        "one by one",
        "parameters",
        "parameters of PEFT 0.19.0",
        "parameters, transposed",
        "w1, w2, w3",
    ]
    assert len({digest(form) for form in different}) == len(different)


@pytest.mark.parametrize("packed_as", ["BF16", "F16"])
@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_conversions_round_to_nearest(tmp_path, stored, packed_as):
    tensors = {name: values.astype(NUMPY[stored]) for name, values in nested(FUSED, plain).items()}
    kind = {"BF16": layout_pb2.TENSOR_TYPE_BFLOAT16, "F16": layout_pb2.TENSOR_TYPE_FLOAT16}[packed_as]
    layout = expert_pack_layout(dtype=kind)
    manifest, data = packed(write_adapter(tmp_path, tensors, lora_config(**BOTH)), layout)
    for placement in manifest.slices:
        slice_ = layout.slices[placement.slice]
        layer, expert = (int(part) for part in slice_.module.split(".") if part.isdecimal())
        expected = FUSED[layer][slice_.module.rpartition(".")[2]]
        a, b = (values[expert].astype(NUMPY[stored]).astype(NUMPY[packed_as]) for values in expected)
        found = np.frombuffer(data, NUMPY[packed_as], 8 * slice_.inputs, placement.a_offset).reshape(8, -1)
        assert found[:4].tobytes() == a.tobytes()
        found = np.frombuffer(data, NUMPY[packed_as], 8 * slice_.outputs, placement.b_offset).reshape(-1, 8)
        assert found[:, :4].tobytes() == b.tobytes()
        assert not found[:, 4:].any()


def test_single_experts_may_be_trained_where_the_config_says_so(tmp_path):
    kept = {name: values for name, values in alone(FREE).items() if ".experts.2." in name or ".3.up" in name}
    targets: dict[str, Any] = {
        "target_modules": ["2.gate_proj", "2.up_proj", "2.down_proj", "experts.3.up_proj"]
    }
    found = packed_deltas(
        write_adapter(tmp_path / "list", kept, lora_config(**targets)), expert_pack_layout()
    )
    assert len(found) == 2 * 4
    pattern: dict[str, Any] = {"target_modules": r".*\.experts\.(2\..*_proj|3\.up_proj)"}
    again = packed_deltas(
        write_adapter(tmp_path / "regex", kept, lora_config(**pattern)), expert_pack_layout()
    )
    assert again.keys() == found.keys()
    layers: dict[str, Any] = {"target_modules": list(NAMES), "layers_to_transform": [1]}
    one = {name: values for name, values in alone(FREE).items() if ".layers.1." in name}
    found = packed_deltas(write_adapter(tmp_path / "layer", one, lora_config(**layers)), expert_pack_layout())
    assert len(found) == EXPERTS * 3


def test_modules_of_one_name_are_enough(tmp_path):
    """Only what the config targets: PEFT with transformers 4 trained the gates alone, if asked to."""
    gates = {name: values for name, values in alone(FREE).items() if ".gate_proj." in name}
    folder = write_adapter(tmp_path, gates, lora_config(("gate_proj",)))
    assert len(packed_deltas(folder, expert_pack_layout())) == 2 * EXPERTS


def test_shapes_that_fit_both_ways_are_read_by_the_version(tmp_path):
    """Where 2 * width == hidden, a gate_up_proj looks the same in PEFT's older form."""
    layout = expert_pack_layout(width=HIDDEN // 2)
    generator = np.random.default_rng(5)
    a = generator.standard_normal((EXPERTS, 4, HIDDEN), np.float32)
    b = generator.standard_normal((EXPERTS, HIDDEN, 4), np.float32)
    options = {"target_modules": [], "target_parameters": ["gate_up_proj"]}

    def read(stack, **changes):
        tensors = {
            f"{PREFIX}model.layers.{layer}.mlp.experts.{part}.weight": np.ascontiguousarray(values)
            for layer in (0, 1)
            for part, values in stack(a, b).items()
        }
        config = lora_config(**options, **changes)
        return packed_deltas(
            write_adapter(tmp_path / str(len(list(tmp_path.iterdir()))), tensors, config), layout
        )

    new, before = read(plain, peft_version="0.19.1"), read(old, peft_version="0.19.0")
    for module, delta in new.items():
        expert = int(module.split(".")[5])
        rows = slice(0, WIDTH) if module.endswith("gate_proj") else slice(HIDDEN // 2, None)
        expected = 2 * (b[expert].astype(np.float64) @ a[expert])[rows][: HIDDEN // 2]
        np.testing.assert_allclose(delta, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(before[module], expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(LorikeetError) as caught:
        read(plain, peft_version=None)
    assert caught.value.reason == "AMBIGUOUS_SHAPE"
    assert "peft_version" in caught.value.message


def test_experts_that_change_nothing_are_told_by_layer(tmp_path):
    tensors = nested(FUSED, plain)
    name = f"{PREFIX}model.layers.1.mlp.experts.lora_B.weight"
    tensors[name].reshape(HIDDEN, 4, EXPERTS)[:, :, 2] = 0
    checked = read_adapter(write_adapter(tmp_path, tensors, lora_config(**BOTH)), expert_pack_layout())
    (note,) = (note for note in checked.notes if "nothing" in note)
    assert note.startswith("model.layers.1.mlp.experts: 1 of 12 projections change nothing")
