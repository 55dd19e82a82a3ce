"""Which page holds which tokens of a row: on the host for planning and, for kernels, on the device."""

import numpy as np
import torch

from kernels.transfer import upload

_NO_CHANGES = np.empty((2, 0), dtype=np.int32)


class PageTable:
    """int32 `[rows, pages of the longest sequence]`, twice where kernels read it (`is_apart`); otherwise both
    are one memory.

    Changes are on the host at once. The device gets them with the step that they come with (`take`), or
    before it (`send`).
    """

    def __init__(self, *, rows: int, columns: int, device: torch.device, is_apart: bool) -> None:
        self.on_host = np.zeros((rows, columns), dtype=np.int32)
        self.on_device = torch.from_numpy(self.on_host).to(device, copy=is_apart)
        self._is_apart = is_apart
        self._changes = _NO_CHANGES

    @property
    def device(self) -> torch.device:
        return self.on_device.device

    def update(self, rows: np.ndarray, columns: np.ndarray, pages: np.ndarray) -> None:
        """Set cells, each to one page; steps launched before still see the former ones."""
        if not len(rows):
            return
        self.on_host[rows, columns] = pages
        if self._is_apart:
            self.send()  # what a step that failed has left
            self._changes = np.empty((2, len(rows)), dtype=np.int32)
            np.multiply(rows, self.on_host.shape[1], out=self._changes[0])
            self._changes[0] += columns
            self._changes[1] = pages

    def take(self, most: int) -> np.ndarray:
        """What the device does not have yet, int32 `[2, C]`: cells of the flat table and pages. The caller
        sees to it. Where there are more than `most`, they are sent, and there is none.
        """
        if self._changes.shape[1] > most:
            self.send()
        changes, self._changes = self._changes, _NO_CHANGES
        return changes

    def send(self) -> None:
        """All of that by itself; steps launched before still see the former pages."""
        if self._changes.shape[1]:
            cells, pages = self._changes
            self._changes = _NO_CHANGES
            cells_C, pages_C = upload(self.device, cells.astype(np.int64), pages)
            self.on_device.view(-1).index_copy_(0, cells_C, pages_C)
