"""A start that is no longer wanted."""

import asyncio
from pathlib import Path

from executor.app import run
from executor.config import ExecutorConfig
from tests.support.cli_serving import MODEL


async def test_an_executor_that_is_to_end_reads_no_more_weights(tmp_path: Path) -> None:
    stop, told = asyncio.Event(), []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        stop.set()

    config = ExecutorConfig(model_dir=MODEL, listen=f"unix:{tmp_path / 'socket'}", kv_pages=8)
    await run(config, stop=stop, ready=lambda address: told.append((0, 0)), progress=progress)
    assert len(told) == 1
    assert told[0][0] < told[0][1]
