"""Packs that are filled while their file comes: the same as those that are filled at once."""

from pathlib import Path

import pytest

from adapter_store.concurrency.crew import Crew
from adapter_store.packs import filling
from adapter_store.packs.filling import PackFiller
from adapter_store.packs.reading import OpenedAdapter, open_adapter
from adapter_store.packs.recipe import recipe_of
from lorikeet.v1 import layout_pb2
from tests.support.store_adapters import fill_pack, lora_config, lora_tensors, toy_pack_layout, write_adapter

DTYPES = [layout_pb2.TENSOR_TYPE_FLOAT32, layout_pb2.TENSOR_TYPE_BFLOAT16]


def opened_in(folder: Path, dtype: layout_pb2.TensorType) -> OpenedAdapter:
    write_adapter(folder, lora_tensors(), lora_config())
    return open_adapter(folder, toy_pack_layout(dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pack_that_is_filled_in_parts_is_the_same(tmp_path, monkeypatch, dtype):
    opened = opened_in(tmp_path / "a", dtype)
    whole, parts, again = (bytearray(b"\xff" * opened.pack_bytes) for _ in range(3))
    scans = fill_pack(opened.plan, opened.files, memoryview(whole))
    # So that each tensor is a group.
    opened.plan.known.clear()
    monkeypatch.setattr(filling, "_GROUP_TENSORS", 1)
    size = (tmp_path / "a/adapter_model.safetensors").stat().st_size
    crew = Crew(2)
    filler = PackFiller(opened.plan, opened.files, crew=crew)
    for ready in range(0, size, 100):
        filler.fill(memoryview(parts), ready=ready)
    assert 0 < len(filler.scans) < len(scans)
    told: list[tuple[int, int]] = []
    filler.fill(memoryview(parts), progress=lambda done, total: told.append((done, total)))
    assert (filler.scans, parts) == (scans, whole)
    assert told[-1][0] == told[-1][1]
    recipe_of(opened.plan).fill(tmp_path / "a", memoryview(again), crew=crew)
    assert again == whole
    crew.close()


def test_what_is_not_there_yet_is_not_read(tmp_path):
    opened = opened_in(tmp_path / "a", DTYPES[0])
    target = bytearray(b"\xff" * opened.pack_bytes)
    filler = PackFiller(opened.plan, opened.files)
    filler.fill(memoryview(target), ready=0)
    assert not filler.scans
    filler.fill(memoryview(target))
    assert len(filler.scans) == len(opened.files.entries)
