"""Host arrays to a device and back without making the device wait.

A copy from or to ordinary memory makes the host wait for all work that the device still has; from pinned
memory it is queued behind that work like a kernel.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 16
_DTYPES = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


def upload(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    """Tensors on the device with the arrays' contents; all travel in one copy. On the CPU they share
    memory.
    """
    if device.type == "cpu":
        return tuple(torch.from_numpy(array) for array in arrays)
    # The allocator of pinned memory keeps the buffer until this copy is done.
    sent = pack(arrays, pinned=device.type == "cuda").to(device, non_blocking=True)
    return unpack(sent, arrays)


def pack(arrays: Sequence[np.ndarray], *, pinned: bool) -> Tensor:
    """One buffer, uint8, with all arrays in it."""
    offsets = _offsets(arrays)
    buffer = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=pinned)
    content = buffer.numpy()
    for array, offset in zip(arrays, offsets, strict=False):
        content[offset : offset + array.nbytes] = np.frombuffer(array.tobytes(), dtype=np.uint8)
    return buffer


def unpack(buffer: Tensor, arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    """Views of a packed buffer, with the dtypes and shapes of the arrays."""
    return tuple(
        buffer[offset : offset + array.nbytes].view(_DTYPES[array.dtype.name]).view(array.shape)
        for array, offset in zip(arrays, _offsets(arrays), strict=False)
    )


def _offsets(arrays: Sequence[np.ndarray]) -> list[int]:
    """Where each array begins, and the end."""
    offsets = [0]
    for array in arrays:
        offsets.append(-(-(offsets[-1] + array.nbytes) // _ALIGNMENT) * _ALIGNMENT)
    return offsets


class Download:
    """Tensors on their way to the host. Made as soon as they are computed; `arrays` waits for them."""

    def __init__(self, *tensors: Tensor) -> None:
        self._hosts = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
        self._done: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._done = torch.cuda.Event()
            self._done.record()

    def arrays(self) -> tuple[np.ndarray, ...]:
        if self._done is not None:
            self._done.synchronize()
        return tuple(host.numpy() for host in self._hosts)
