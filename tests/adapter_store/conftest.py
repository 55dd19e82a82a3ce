from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.store_adapters import write_adapter
from tests.support.store_server import RunningStore, running_store

if TYPE_CHECKING:
    from tests.support.source_servers import WebServer


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningStore]:
    """A store with a layout and no adapters."""
    async with running_store(tmp_path) as running:
        await running.register()
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter's."""
    return write_adapter(tmp_path / "folder")


@pytest.fixture
def web(folder: Path) -> "Iterator[WebServer]":
    """A server that has it as /adapters/a."""
    # Its libraries take their time.
    from tests.support.source_servers import WebServer, serving

    server = WebServer(files={f"/adapters/a/{path.name}": path.read_bytes() for path in folder.iterdir()})
    with serving(server):
        yield server
