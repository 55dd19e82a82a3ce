"""Packs and slots' rows on their way to the device, beside the steps that run there."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from executor.adapters.pool import PackCopy
from kernels.lora import UNIT_BYTES, SlotRow, SlotTable

# A pack may lie in read-only memory; it is only read.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

_TOGETHER = 8
_copy: Any = getattr(torch, "_foreach_copy_")  # noqa: B009 -- a checker does not know it


class PackCopies:
    """Each call of CUDA's gives the interpreter to other threads and then has to wait for it, which takes
    longer than the call: so packs that come together are copied by one. It waits for no step, since steps in
    flight have neither the ranges nor the slots. For one thread at a time.
    """

    def __init__(self, table: SlotTable) -> None:
        pool, slices = table.pool, len(table.shapes)
        self._table = table
        self._bytes = pool.view(torch.uint8)
        self._stream = torch.cuda.Stream(pool.device) if pool.is_cuda else None
        if self._stream is not None:  # for the pool itself
            self._stream.wait_stream(torch.cuda.current_stream(pool.device))
        # Pinned, for what is sent from other memory is first copied to some that is.
        fields = torch.empty(_TOGETHER, slices, 6, dtype=torch.int64, pin_memory=pool.is_cuda)
        scaling = torch.empty(_TOGETHER, slices, dtype=torch.float32, pin_memory=pool.is_cuda)
        self._staged = list(zip(fields.unbind(), scaling.unbind(), strict=True))
        self._rows = list(zip(fields.numpy(), scaling.numpy(), strict=True))

    def stream(self) -> "torch.cuda.StreamContext | nullcontext[None]":
        """Whatever is launched inside is ordered with the copies."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """Until what was launched inside `stream` is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def make(self, copies: Sequence[PackCopy[SlotRow]]) -> None:
        """Returns when all is there. Raises ValueError, before anything is copied, for a pack that does not
        fit the pool.
        """
        for copy in copies:
            size, start = memoryview(copy.pack).nbytes, copy.unit_offset * UNIT_BYTES
            if start < 0 or start + size > len(self._bytes):
                raise ValueError(f"a pack of {size} bytes at unit {copy.unit_offset} does not fit the pool")
        for begin in range(0, len(copies), _TOGETHER):
            self._make(copies[begin : begin + _TOGETHER])

    def _make(self, copies: Sequence[PackCopy[SlotRow]]) -> None:
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for copy, (fields, scaling), staged in zip(copies, self._rows, self._staged, strict=False):
            pack = torch.frombuffer(copy.pack, dtype=torch.uint8)
            fields[:], scaling[:] = copy.row.fields, copy.row.scaling
            start = copy.unit_offset * UNIT_BYTES
            targets += (self._bytes[start : start + len(pack)], *self._table.place(copy.slot))
            sources += (pack, *staged)
        with self.stream():
            # Each is waited for inside: a call to wait for all would have to get the interpreter first.
            _copy(targets, sources, non_blocking=False)
