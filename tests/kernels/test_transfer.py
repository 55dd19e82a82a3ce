"""Packed copies, and what they hold on arrival."""

import numpy as np
import pytest
import torch

from kernels.transfer import Download, pack, unpack, upload

ARRAYS = (
    np.arange(7, dtype=np.int64),
    np.empty((4, 0), dtype=np.int32),
    np.arange(6, dtype=np.int32).reshape(2, 3).T,
    np.array([0.5], dtype=np.float32),
)


def test_a_packed_buffer_holds_every_array() -> None:
    for array, tensor in zip(ARRAYS, unpack(pack(ARRAYS, pinned=False), ARRAYS), strict=True):
        assert torch.equal(tensor, torch.from_numpy(array))
        assert tensor.dtype == torch.from_numpy(array).dtype
        assert tensor.shape == array.shape
    assert unpack(pack((), pinned=False), ()) == ()


def test_on_the_cpu_nothing_is_copied() -> None:
    (tensor,) = upload(torch.device("cpu"), ARRAYS[0])
    assert tensor.data_ptr() == ARRAYS[0].ctypes.data


def test_what_lands_stays_until_it_is_asked_for_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads that cross, in all sizes; memory is used again only for what comes after."""
    monkeypatch.setattr("kernels.transfer._landings", landings := {})
    sizes = [(3,), (0,), (2000,), (5, 4), (1 << 13,), (1,), (700, 2), (64,)]
    sources = [[torch.randn(size), torch.randint(1000, size)] for size in sizes]
    pending: list[tuple[int, Download]] = []
    for number, tensors in enumerate(sources):
        pending.append((number, Download(*tensors, torch.tensor([number]))))
        if number % 3:
            earlier, download = pending.pop(0)
            expected = [tensor.numpy().copy() for tensor in sources[earlier]]
            arrived = download.arrays()
            for tensor in sources[earlier]:
                tensor.zero_()
            Download(torch.full((100,), -1)).arrays()
            for array, right in zip(arrived, [*expected, np.array([earlier])], strict=True):
                np.testing.assert_array_equal(array, right)
            assert download.arrays() is arrived
    for _, download in pending:
        download.arrays()
    ((_, free),) = landings.items()
    assert len(free) == 4, "as many as were on their way at once"


@pytest.mark.parametrize("first", [True, False])
def test_what_lands_in_inference_lands_elsewhere_too(monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    monkeypatch.setattr("kernels.transfer._landings", {})
    for mode in (first, not first):
        with torch.inference_mode(mode):
            assert Download(torch.arange(3)).arrays()[0].tolist() == [0, 1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_there_and_back() -> None:
    back = Download(*upload(torch.device("cuda"), *ARRAYS)).arrays()
    for array, arrived in zip(ARRAYS, back, strict=True):
        np.testing.assert_array_equal(arrived, array)
