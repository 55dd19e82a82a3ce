"""Host arrays to a device and back without making the device wait.

A copy from or to ordinary memory makes the host wait for all work that the device still has; from pinned
memory it is queued behind that work like a kernel.
"""

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 16


def upload(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    """Tensors on the device with the arrays' contents; all travel in one copy. On the CPU they share
    memory.
    """
    if device.type == "cpu":
        return tuple(torch.from_numpy(array) for array in arrays)
    offsets = [0]
    for array in arrays:
        offsets.append(-(-(offsets[-1] + array.nbytes) // _ALIGNMENT) * _ALIGNMENT)
    staged = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=True)
    host = staged.numpy()
    for array, offset in zip(arrays, offsets, strict=False):
        host[offset : offset + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    # The allocator of pinned memory keeps `staged` until this copy is done.
    sent = staged.to(device, non_blocking=True)
    return tuple(
        sent[offset : offset + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for array, offset in zip(arrays, offsets, strict=False)
    )


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
