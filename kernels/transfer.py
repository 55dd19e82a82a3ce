"""Host arrays to a device and back without making the device wait.

A copy from or to ordinary memory makes the host wait for all work that the device still has; from pinned
memory it is queued behind that work like a kernel.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 16
_LANDING_BYTES = 1 << 13
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
    """Tensors on their way to the host. Made as soon as they are computed; `arrays` waits for them.

    What is small lands in memory that is used again and again, as its event is: to make them anew takes more
    calls of CUDA's than the copy itself.
    """

    def __init__(self, *tensors: Tensor) -> None:
        device = tensors[0].device
        self._free = _landings.setdefault(device, [])
        self._landing: _Landing | None = self._free.pop() if self._free else _Landing(device)
        self._hosts: list[Tensor] = []
        offset = 0
        for tensor in tensors:
            end = offset + tensor.nbytes
            if end > _LANDING_BYTES:
                self._hosts.append(tensor.to("cpu", non_blocking=True))
                continue
            host = self._landing.memory[offset:end].view(tensor.dtype).view(tensor.shape)
            self._hosts.append(host.copy_(tensor, non_blocking=True))
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        if self._landing.done is not None:
            self._landing.done.record()
        self._arrays: tuple[np.ndarray, ...] = ()

    def arrays(self) -> tuple[np.ndarray, ...]:
        if self._landing is None:
            return self._arrays
        # To ask gives no other thread the interpreter, as to wait does.
        if (done := self._landing.done) is not None and not done.query():
            done.synchronize()
        self._arrays = tuple(host.numpy().copy() for host in self._hosts)
        self._free.append(self._landing)
        self._landing = None
        self._hosts.clear()
        return self._arrays


class _Landing:
    """Where one download at a time arrives, and what says that it has."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        with torch.inference_mode(False):  # so that it may be written to outside
            self.memory = torch.empty(_LANDING_BYTES, dtype=torch.uint8, pin_memory=on_gpu)
        self.done = torch.cuda.Event() if on_gpu else None


# By device, those that nothing is on its way to. One that is never asked what has arrived does not come back.
_landings: dict[torch.device, list[_Landing]] = {}
