import numpy as np
import pytest

from adapter_store.packs import norms
from adapter_store.packs.norms import delta_norm
from adapter_store.packs.reading import read_adapter
from tests.support.store_adapters import (
    effective_deltas,
    lora_config,
    lora_tensors,
    toy_pack_layout,
    write_adapter,
)

TARGETS = ("q_proj", "down_proj", "embed_tokens", "lm_head")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_norms_are_those_of_the_products(tmp_path, monkeypatch, dtype, transposed):
    monkeypatch.setattr(norms, "_LARGE_VALUES", 0)
    tensors, layout = lora_tensors(TARGETS, dtype=dtype), toy_pack_layout()
    stored = {name: np.ascontiguousarray(v.T) if transposed else v for name, v in tensors.items()}
    checked = read_adapter(write_adapter(tmp_path, stored, lora_config(TARGETS)), layout)
    scalings = {adapted.slice.module: adapted.scaling for adapted in checked.slices}
    deltas = effective_deltas(tensors, scalings, layout)
    for adapted in checked.slices:
        expected = np.linalg.norm(deltas[adapted.slice.module])
        rtol = 1e-12 if dtype == "F32" else 1e-6
        np.testing.assert_allclose(delta_norm(adapted, checked.files), expected, rtol=rtol)


def test_squares_may_leave_the_range_of_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(norms, "_LARGE_VALUES", 0)
    for number, factor in enumerate((1e30, 1e-30)):
        tensors, layout = lora_tensors(dtype="BF16"), toy_pack_layout()
        for name, values in tensors.items():
            values *= factor if ".lora_A." in name else 1 / factor
        folder = write_adapter(tmp_path / str(number), tensors)
        checked = read_adapter(folder, layout)
        deltas = effective_deltas(tensors, {s.slice.module: s.scaling for s in checked.slices}, layout)
        for adapted in checked.slices:
            expected = np.linalg.norm(deltas[adapted.slice.module])
            np.testing.assert_allclose(delta_norm(adapted, checked.files), expected, rtol=1e-6)


def test_what_changes_nothing_has_no_norm(tmp_path):
    tensors = lora_tensors()
    for name, values in tensors.items():
        if ".lora_B." in name:
            values[:] = 0
    checked = read_adapter(write_adapter(tmp_path, tensors), toy_pack_layout())
    assert {delta_norm(adapted, checked.files) for adapted in checked.slices} == {0.0}
