"""Settings that must stand before anything is imported, and the order of files."""

import os
from collections.abc import Iterator
from typing import Any

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


@pytest.fixture(scope="session", autouse=True)
def _grpc_stays_up() -> Iterator[None]:
    """grpc.aio shuts down with its last channel, which can hang when any thread collects that late."""
    try:
        from grpc import aio
    except ImportError:  # on a machine for GPU work
        yield
        return
    grpc: Any = aio
    grpc.init_grpc_aio()
    yield
    grpc.shutdown_grpc_aio()
