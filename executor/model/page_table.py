"""Which page holds which tokens of a row: on the host for planning and, for kernels, on the device."""

import numpy as np
import torch

from kernels.transfer import upload


class PageTable:
    """int32 `[rows, pages of the longest sequence]`, twice; on the CPU both are one memory."""

    def __init__(self, *, rows: int, columns: int, device: torch.device) -> None:
        self.on_host = np.zeros((rows, columns), dtype=np.int32)
        self.on_device = torch.from_numpy(self.on_host).to(device)
        self.device = device

    def update(self, rows: np.ndarray, columns: np.ndarray, pages: np.ndarray) -> None:
        """Set cells, none of them twice; steps launched before still see the former ones."""
        if not len(rows):
            return
        self.on_host[rows, columns] = pages
        if self.device.type != "cpu":
            cells = rows.astype(np.int64) * self.on_host.shape[1] + columns
            cells_K, pages_K = upload(self.device, cells, pages.astype(np.int32))
            self.on_device.view(-1).index_copy_(0, cells_K, pages_K)
