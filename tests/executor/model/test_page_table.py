"""The page table on the device, whatever becomes of the steps that changes come with."""

import numpy as np
import torch

from executor.model.page_table import PageTable

CPU = torch.device("cpu")
ROWS, COLUMNS, MOST = 5, 16, 4


def test_the_device_gets_every_change_in_order() -> None:
    """By steps that take changes, by such as have them sent, and after steps that failed before either."""
    rng = np.random.default_rng(0)
    table = PageTable(rows=ROWS, columns=COLUMNS, device=CPU, is_apart=True)
    flat, overflows = table.on_device.view(-1), 0
    for _ in range(300):
        cells = rng.choice(ROWS * COLUMNS, rng.integers(0, 2 * MOST), replace=False).astype(np.int32)
        pages = rng.integers(1, 1000, len(cells)).astype(np.int32)
        table.update(cells // COLUMNS, cells % COLUMNS, pages)
        match rng.choice(["fails", "sends", "takes"]):
            case "fails":
                continue
            case "sends":
                table.send()
            case _:
                changes = table.take(MOST)
                assert changes.shape[1] <= MOST
                overflows += len(cells) > MOST
                taken, of_them = torch.from_numpy(changes).long()
                flat[taken] = of_them.int()
        assert table.on_device.tolist() == table.on_host.tolist()
        assert not table.take(MOST).size, "a change is sent once"
    assert overflows


def test_without_kernels_both_are_one_memory() -> None:
    table = PageTable(rows=ROWS, columns=COLUMNS, device=CPU, is_apart=False)
    table.update(np.array([1]), np.array([2]), np.array([7]))
    assert table.on_device[1, 2] == 7
    assert not table.take(MOST).size
