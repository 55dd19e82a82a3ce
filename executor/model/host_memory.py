"""Memory that other processes write and a GPU reads: registered with CUDA, it is copied by the GPU's own
engines at the bus's speed; unregistered, by a thread through a small buffer of the driver's.
"""

import logging
from typing import Any

import numpy as np
import torch

log = logging.getLogger(__name__)

_READ_ONLY = 0x08  # cudaHostRegisterReadOnly


class RegisteredMemory:
    """One range at a time, kept alive as long as it is registered. Not thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: np.ndarray | None = None

    def register(self, memory: np.ndarray) -> bool:
        """Registers a range that is mapped for reading, in place of the last one; takes as long as pinning
        its pages does. False where that is impossible, which makes copies slower and nothing else.
        """
        self.release()
        with torch.cuda.device(self._device):
            status = _cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, _READ_ONLY)
        if int(status) != 0:
            log.warning("CUDA cannot register the store's arena (%s): copies are slower", status)
            return False
        self._memory = memory
        return True

    def release(self) -> None:
        """Nothing may be copied from the range by now."""
        if self._memory is not None:
            _cudart().cudaHostUnregister(self._memory.ctypes.data)
            self._memory = None


def _cudart() -> Any:
    return torch.cuda.cudart()
