"""PEFT's other forms of LoRA, as the store reads and packs them."""

import numpy as np
import pytest

from adapter_store.packs.plan import plan_pack
from adapter_store.packs.reading import read_adapter
from rpc.errors import LorikeetError
from tests.support.store_adapters import (
    HIDDEN,
    LINEARS,
    VOCABULARY,
    lora_config,
    lora_tensors,
    pack_bytes,
    toy_pack_layout,
    write_adapter,
)

P = "base_model.model."
Q0 = f"{P}model.layers.0.self_attn.q_proj"
Q, K, V = (f"self_attn.{name}_proj" for name in "qkv")


def vectors(suffix: str, *names: str, seed: int = 7) -> dict[str, np.ndarray]:
    """One vector of a linear's outputs for each of these modules in both layers."""
    generator = np.random.default_rng(seed)
    return {
        f"{P}model.layers.{layer}.{name}.{suffix}": generator.standard_normal(LINEARS[name][1], np.float32)
        for layer in (0, 1)
        for name in names
    }


def weight(module: str, seed: int = 9) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).standard_normal((VOCABULARY, HIDDEN), np.float32)
    return {f"{P}{module}.weight": values}


def read(folder, tensors, config, **layout):
    return read_adapter(write_adapter(folder, tensors, config), toy_pack_layout(**layout))


def refusal(folder, tensors, config, **layout) -> LorikeetError:
    with pytest.raises(LorikeetError) as caught:
        read(folder, tensors, config, **layout)
    return caught.value


def pack(checked, **layout):
    """Module to placement, and the pack's bytes."""
    layout = toy_pack_layout(**layout)
    plan = plan_pack(checked.digest, checked.slices, layout)
    data = pack_bytes(plan, checked.files)
    return {layout.slices[p.slice].module: p for p in plan.manifest.slices}, data


def at(data: bytes, offset: int, *shape: int) -> np.ndarray:
    assert offset % 128 == 0
    return np.frombuffer(data, "<f4", int(np.prod(shape)), offset).reshape(shape)


def test_dora_brings_its_magnitudes(tmp_path):
    tensors = lora_tensors() | vectors("lora_magnitude_vector", Q, V)
    checked = read(tmp_path / "dora", tensors, lora_config(use_dora=True))
    placements, data = pack(checked)
    for module, placement in placements.items():
        magnitude = tensors[f"{P}{module}.lora_magnitude_vector"]
        np.testing.assert_array_equal(at(data, placement.magnitude_offset, magnitude.size), magnitude)
        assert not placement.HasField("shift_offset")
    assert checked.digest != read(tmp_path / "plain", lora_tensors(), lora_config()).digest


def test_dora_leaves_room_for_the_shift_where_the_base_has_a_bias(tmp_path):
    targets = ("q_proj", "o_proj")
    tensors = lora_tensors(targets) | vectors("lora_magnitude_vector", Q, "self_attn.o_proj")
    placements, data = pack(
        read(tmp_path, tensors, lora_config(targets, use_dora=True), biases=True), biases=True
    )
    for module, placement in placements.items():
        assert placement.HasField("shift_offset") == module.endswith("q_proj")
    shift = at(data, placements["model.layers.1.self_attn.q_proj"].shift_offset, LINEARS[Q][1])
    assert not shift.any()


def test_biases_on_lora_b(tmp_path):
    tensors = lora_tensors() | vectors("lora_B.bias", Q, V)
    placements, data = pack(read(tmp_path, tensors, lora_config(lora_bias=True)))
    for module, placement in placements.items():
        bias = tensors[f"{P}{module}.lora_B.bias"]
        np.testing.assert_array_equal(at(data, placement.lora_bias_offset, bias.size), bias)
        assert placement.HasField("shift_offset")


def test_trained_biases(tmp_path):
    wrapped = vectors("base_layer.bias", Q, V)
    checked = read(tmp_path / "own", lora_tensors() | wrapped, lora_config(bias="lora_only"), biases=True)
    placements, data = pack(checked, biases=True)
    assert len(placements) == 4
    every = wrapped | vectors("bias", K)
    checked = read(tmp_path / "all", lora_tensors() | every, lora_config(bias="all"), biases=True)
    placements, data = pack(checked, biases=True)
    alone = placements["model.layers.1.self_attn.k_proj"]
    assert (alone.rank, alone.padded_rank, alone.scaling) == (0, 0, 0)
    bias = every[f"{P}model.layers.1.{K}.bias"]
    np.testing.assert_array_equal(at(data, alone.bias_offset, bias.size), bias)


def test_whole_weights(tmp_path):
    tensors = lora_tensors() | weight("lm_head") | weight("model.embed_tokens", seed=10)
    config = lora_config(modules_to_save=["lm_head", "embed_tokens"])
    placements, data = pack(read(tmp_path, tensors, config))
    for module in ("lm_head", "model.embed_tokens"):
        placement, expected = placements[module], tensors[f"{P}{module}.weight"]
        assert placement.rank == 0
        np.testing.assert_array_equal(at(data, placement.weight_offset, VOCABULARY, HIDDEN), expected)


def test_a_whole_weight_has_no_lora_even_if_it_is_targeted_too(tmp_path):
    config = lora_config(("q_proj", "v_proj", "lm_head"), modules_to_save=["lm_head"])
    checked = read(tmp_path / "one", lora_tensors() | weight("lm_head"), config)
    assert [s.rank for s in checked.slices if s.slice.module == "lm_head"] == [0]
    targets = ("q_proj", "v_proj", "lm_head")
    error = refusal(tmp_path / "two", lora_tensors(targets) | weight("lm_head"), config)
    assert (error.reason, error.metadata["module"]) == ("UNTARGETED_MODULE", "lm_head")


def test_tied_weights_may_bring_a_head_that_no_option_names(tmp_path):
    tensors = lora_tensors() | weight("lm_head") | weight("model.embed_tokens")
    config = lora_config(modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    assert len(read(tmp_path, tensors, config).slices) == 6


@pytest.mark.parametrize("name", ["norm", "q_proj", "score"])
def test_other_modules_are_not_replaced(tmp_path, name):
    error = refusal(tmp_path, lora_tensors(), lora_config(modules_to_save=[name]))
    assert (error.code.name, error.metadata["option"]) == ("UNIMPLEMENTED", "modules_to_save")
    assert repr(name) in error.message


def test_transposed_tensors_are_turned_round(tmp_path):
    targets = ("q_proj", "down_proj", "embed_tokens")
    tensors, config = lora_tensors(targets), lora_config(targets)
    turned = {name: np.ascontiguousarray(values.T) for name, values in tensors.items()}
    plain, other = read(tmp_path / "plain", tensors, config), read(tmp_path / "turned", turned, config)
    assert pack(other)[1] == pack(plain)[1]
    assert plain.notes == ()
    assert "and 4 other modules: lora_A or lora_B is stored transposed" in other.notes[0]


def test_square_tensors_lie_as_peft_stores_them(tmp_path):
    tensors = lora_tensors(("q_proj",), rank=HIDDEN)
    checked = read(tmp_path / "square", tensors, lora_config(("q_proj",), r=HIDDEN))
    assert not any(s.is_a_transposed or s.is_b_transposed for s in checked.slices)
    name = f"{Q0}.lora_B.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    error = refusal(tmp_path / "turned", tensors, lora_config(("q_proj",), r=HIDDEN))
    assert error.reason == "AMBIGUOUS_SHAPE"


@pytest.mark.parametrize("packed", ["F32", "BF16"])
def test_vectors_are_packed_in_float32_whatever_the_layout(tmp_path, packed):
    from lorikeet.v1 import layout_pb2

    dtype = {"F32": layout_pb2.TENSOR_TYPE_FLOAT32, "BF16": layout_pb2.TENSOR_TYPE_BFLOAT16}[packed]
    tensors = lora_tensors() | vectors("lora_magnitude_vector", Q, V)
    placements, data = pack(read(tmp_path, tensors, lora_config(use_dora=True), dtype=dtype), dtype=dtype)
    placement = placements["model.layers.0.self_attn.q_proj"]
    np.testing.assert_array_equal(
        at(data, placement.magnitude_offset, LINEARS[Q][1]), tensors[f"{Q0}.lora_magnitude_vector"]
    )
