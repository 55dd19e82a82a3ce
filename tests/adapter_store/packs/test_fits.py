"""Adapters that are alike but for their values: headers and config are read once, nothing else is shared."""

import json

import numpy as np
import pytest

from adapter_store.packs.fits import Fit, Fits, Likeness
from adapter_store.packs.plan import PackPlan
from adapter_store.packs.reading import open_adapter, read_adapter
from lorikeet.v1 import layout_pb2
from rpc.errors import LorikeetError
from tests.support.store_adapters import lora_config, lora_tensors, toy_pack_layout, write_adapter

LAYOUT = toy_pack_layout()


def test_what_is_alike_shares_its_fit_and_differs_in_digest(tmp_path):
    first, second = (write_adapter(tmp_path / str(seed), lora_tensors(seed=seed)) for seed in (1, 2))
    assert open_adapter(first, LAYOUT).fit is open_adapter(second, LAYOUT).fit
    digests = {read_adapter(folder, LAYOUT).digest for folder in (first, second, first)}
    assert len(digests) == 2
    # A digest that one plan is given is not the other's.
    opened = open_adapter(first, LAYOUT)
    opened.plan.manifest.digest = "1" * 64
    assert open_adapter(second, LAYOUT).plan.manifest.digest == ""


def test_another_scaling_layout_limit_or_template_is_another_adapter(tmp_path):
    folder = write_adapter(tmp_path / "a", lora_tensors())
    fit, digest = open_adapter(folder, LAYOUT).fit, read_adapter(folder, LAYOUT).digest
    with pytest.raises(LorikeetError, match="rank"):
        open_adapter(folder, toy_pack_layout(max_rank=2))
    assert open_adapter(folder, toy_pack_layout(dtype=layout_pb2.TENSOR_TYPE_BFLOAT16)).fit is not fit
    (folder / "adapter_config.json").write_text(json.dumps(lora_config(lora_alpha=77)))
    assert open_adapter(folder, LAYOUT).fit is not fit
    assert read_adapter(folder, LAYOUT).digest != digest


def test_a_file_with_a_known_header_and_another_size_is_refused(tmp_path):
    folder = write_adapter(tmp_path / "a", lora_tensors())
    open_adapter(folder, LAYOUT)
    path = folder / "adapter_model.safetensors"
    for data in (path.read_bytes()[:-4], path.read_bytes() + bytes(4)):
        path.write_bytes(data)
        with pytest.raises(LorikeetError) as caught:
            open_adapter(folder, LAYOUT)
        assert caught.value.reason == "BAD_FILE"


def test_nan_is_found_in_the_second_of_two_that_are_alike(tmp_path):
    read_adapter(write_adapter(tmp_path / "a", lora_tensors()), LAYOUT)
    tensors = lora_tensors(seed=1)
    tensors[sorted(tensors)[0]][0, 0] = np.nan
    with pytest.raises(LorikeetError) as caught:
        read_adapter(write_adapter(tmp_path / "b", tensors), LAYOUT)
    assert caught.value.reason == "NOT_FINITE"


def test_fits_are_few():
    plan = PackPlan(manifest=layout_pb2.PackManifest(), tensors=())
    entries = {str(number): None for number in range(10)}
    fit = Fit(entries=entries, slices=(), notes=(), plan=plan)  # pyright: ignore[reportArgumentType] - counted only
    fits = Fits(most_bytes=25_000)
    asked = [Likeness("layout", 8, str(number).encode(), ()) for number in range(3)]
    for likeness in asked:
        fits.keep(likeness, fit)
    assert [fits.find(likeness) is fit for likeness in asked] == [False, True, True]
    small = Fits(most_bytes=10_000)
    small.keep(asked[0], fit)
    assert small.find(asked[0]) is None
