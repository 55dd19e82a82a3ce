"""A store with a layout and loaded adapters, and its executors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from rpc.errors import LorikeetError, from_rpc
from tests.support.store_adapters import lora_config, lora_tensors, packed, write_adapter
from tests.support.store_server import ExecutorClient, RunningStore, eventually, running_store


class Ready:
    """A store with a layout and loaded adapters, and an executor's stream."""

    def __init__(self, running, layout: str) -> None:
        self.running = running
        self.store = running.store
        self.layout = layout

    async def load(self, name: str, seed: int = 0, *, rank: int = 4) -> str:
        folder = self.running.config.roots[0] / f"{name}-{seed}-{rank}"
        write_adapter(folder, lora_tensors(seed=seed, rank=rank), lora_config(r=rank))
        return (await self.running.load(name, folder)).adapter.digest

    async def executor(self, held=(), layout: str = "") -> ExecutorClient:
        return await ExecutorClient(self.running, layout or self.layout, held).start()

    def pack_of(self, digest: str) -> bytes:
        return pack_of(self.running, digest, self.layout)

    async def leases(self, count: int) -> None:
        await eventually(lambda: self.store.executors.leases == count)

    async def arena_leases(self, count: int) -> None:
        """Waits: for as long as it takes a new pack's checksum, the store itself holds it too."""
        await eventually(lambda: self.store.statistics().arena.leases == count)


def pack_of(running: RunningStore, digest: str, layout: str) -> bytes:
    """The pack of an object on disk, made by the test."""
    return packed(running.config.data_dir / "objects" / digest, running.store.layouts.get(layout))[1]


@asynccontextmanager
async def running_ready(folder: Path) -> AsyncIterator[Ready]:
    async with running_store(folder) as running:
        response = await running.register()
        yield Ready(running, response.layout_digest)


def toy_adapter(running, name: str = "a", seed: int = 0, **config) -> Path:
    """Writes an adapter below the store's root."""
    return write_adapter(running.config.roots[0] / name, lora_tensors(seed=seed), lora_config(**config))


async def refusal(call) -> LorikeetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value)
