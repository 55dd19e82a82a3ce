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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_there_and_back() -> None:
    back = Download(*upload(torch.device("cuda"), *ARRAYS)).arrays()
    for array, arrived in zip(ARRAYS, back, strict=True):
        np.testing.assert_array_equal(arrived, array)
