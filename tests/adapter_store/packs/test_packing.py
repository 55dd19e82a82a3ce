import ml_dtypes
import numpy as np
import pytest

from lorikeet.v1 import layout_pb2
from rpc.errors import LorikeetError
from tests.support.store_adapters import (
    NUMPY,
    effective_deltas,
    lora_config,
    lora_tensors,
    packed,
    toy_pack_layout,
    write_adapter,
)

TYPES = {
    "F32": layout_pb2.TENSOR_TYPE_FLOAT32,
    "BF16": layout_pb2.TENSOR_TYPE_BFLOAT16,
    "F16": layout_pb2.TENSOR_TYPE_FLOAT16,
}
EVERYTHING = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANKS = {"q_proj": 1, "v_proj": 8, "up_proj": 13, "embed_tokens": 3, "lm_head": 9}


def pack(folder, tensors, config, dtype="F32", **layout):
    layout = toy_pack_layout(dtype=TYPES[dtype], **layout)
    manifest, data = packed(write_adapter(folder, tensors, config), layout)
    return layout, manifest, data


def unpack(layout, manifest, data, dtype):
    """lora_a [padded, in] and lora_b [out, padded] of each slice, read by the manifest alone."""
    item = NUMPY[dtype]
    found = {}
    for placement in manifest.slices:
        slice_ = layout.slices[placement.slice]
        padded = placement.padded_rank
        a = np.frombuffer(data, item, padded * slice_.inputs, placement.a_offset)
        b = np.frombuffer(data, item, padded * slice_.outputs, placement.b_offset)
        a = a.reshape(slice_.inputs, padded).T if slice_.is_embedding else a.reshape(padded, slice_.inputs)
        found[slice_.module] = (a, b.reshape(slice_.outputs, padded), placement)
    return found


def mixed_adapter(dtype):
    targets = (*EVERYTHING, "embed_tokens", "lm_head")
    tensors = lora_tensors(targets, ranks=RANKS, dtype=dtype, seed=3)
    config = lora_config(targets, rank_pattern=RANKS, alpha_pattern={"o_proj": 3, "lm_head": 5})
    return tensors, config


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_a_pack_holds_the_adapters_own_bits(tmp_path, dtype):
    tensors, config = mixed_adapter(dtype)
    layout, manifest, data = pack(tmp_path, tensors, config, dtype)
    found = unpack(layout, manifest, data, dtype)
    assert len(found) == len(layout.slices)
    for module, (a, b, placement) in found.items():
        names = (
            ("lora_embedding_A", "lora_embedding_B")
            if module.endswith("embed_tokens")
            else ("lora_A.weight", "lora_B.weight")
        )
        rank = placement.rank
        expected_a, expected_b = (tensors[f"base_model.model.{module}.{name}"] for name in names)
        assert a[:rank].tobytes() == expected_a.tobytes(), module
        assert b[:, :rank].tobytes() == expected_b.tobytes(), module
        assert not a[rank:].any()
        assert not b[:, rank:].any()


def test_the_manifest_keeps_the_contract(tmp_path):
    tensors, config = mixed_adapter("BF16")
    layout, manifest, data = pack(tmp_path, tensors, config, "BF16")
    assert manifest.layout_digest == layout.digest
    assert manifest.total_bytes == len(data)
    assert len(data) % 128 == 0
    ends = 0
    for placement in manifest.slices:
        slice_ = layout.slices[placement.slice]
        assert placement.padded_rank % 8 == 0
        assert 0 <= placement.padded_rank - placement.rank < 8
        for offset, width in ((placement.a_offset, slice_.inputs), (placement.b_offset, slice_.outputs)):
            assert offset % 128 == 0
            assert 0 <= offset - ends < 128
            assert not any(data[ends:offset])
            ends = offset + 2 * width * placement.padded_rank
    assert 0 <= len(data) - ends < 128
    scalings = {layout.slices[p.slice].module: p.scaling for p in manifest.slices}
    assert scalings["model.layers.0.self_attn.o_proj"] == np.float32(3 / 4)
    assert scalings["lm_head"] == np.float32(5 / 9)
    assert scalings["model.layers.0.self_attn.q_proj"] == np.float32(8)


def test_untouched_slices_take_no_bytes(tmp_path):
    layout, manifest, data = pack(tmp_path, lora_tensors(), lora_config())
    assert [layout.slices[p.slice].module.split(".")[-1] for p in manifest.slices] == ["q_proj", "v_proj"] * 2
    assert len(data) == 2 * 4 * 8 * ((16 + 32) + (16 + 8))


@pytest.mark.parametrize("stored", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("packed", ["F32", "BF16", "F16"])
def test_conversions_round_to_nearest(tmp_path, stored, packed):
    tensors, config = mixed_adapter(stored)
    layout, manifest, data = pack(tmp_path, tensors, config, packed)
    scalings = {layout.slices[p.slice].module: p.scaling for p in manifest.slices}
    rounded = {name: values.astype(NUMPY[packed]) for name, values in tensors.items()}
    expected = effective_deltas(rounded, scalings, layout)
    for module, (a, b, placement) in unpack(layout, manifest, data, packed).items():
        delta = placement.scaling * b.astype(np.float64) @ a.astype(np.float64)
        np.testing.assert_array_equal(delta, expected[module], err_msg=module)


def test_bfloat16_conversion_agrees_with_torch():
    import torch

    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 1e3
    ours = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("packed", "value"), [("F16", 1e5), ("BF16", 3.4e38)])
def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path, packed, value):
    tensors = lora_tensors()
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    tensors[name][0, 0] = value
    with pytest.raises(LorikeetError) as caught:
        pack(tmp_path, tensors, lora_config(), packed)
    assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "OUT_OF_RANGE")
    assert name in caught.value.message


def test_a_pack_larger_than_the_executors_pool_is_refused(tmp_path):
    with pytest.raises(LorikeetError) as caught:
        pack(tmp_path, lora_tensors(), lora_config(), max_pack_bytes=4096)
    assert caught.value.reason == "PACK_TOO_LARGE"
    assert "takes 4608 bytes and the executor's pool holds 4096" in caught.value.message
