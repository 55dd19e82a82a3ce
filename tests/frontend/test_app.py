"""A frontend that cannot start leaves nothing open."""

import socket
from pathlib import Path

import pytest

from frontend.app import run
from frontend.config import FrontendConfig


async def test_a_frontend_that_cannot_start_closes_what_it_had_opened(
    model_folder: Path, tmp_path: Path
) -> None:
    local = tmp_path / "local.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = FrontendConfig(
            model_dir=model_folder,
            listen="127.0.0.1:0",
            local_listen=f"unix:{local}",
            metrics_listen=f"127.0.0.1:{taken.getsockname()[1]}",
            executor="127.0.0.1:1",
            store="",
        )
        # What was raised keeps the frontend from being collected, which would close it, too.
        with pytest.raises(OSError, match="metrics_listen") as raised:
            await run(config)
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError, match=r"refused|No such"):
            client.connect(str(local))
    assert raised.value.__cause__ is not None
