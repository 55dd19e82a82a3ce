from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.store_server import RunningStore, running_store


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningStore]:
    """A store with a layout and no adapters."""
    async with running_store(tmp_path) as running:
        await running.register()
        yield running
