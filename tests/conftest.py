"""Settings that must stand before anything is imported, and the order of files."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter. It reads this when it is first imported, by whomever.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# `make test` hands out files to processes: none should begin a long one when the others are done.
LONG = ("kernels", "e2e", "executor", "cli", "demo")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=turn)
