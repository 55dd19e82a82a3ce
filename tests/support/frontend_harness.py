"""A real frontend on port 0 between a fake executor and a fake store, all in the test's event loop."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from frontend.app import Frontend
from frontend.config import FrontendConfig
from frontend.model_folder import read_model_folder
from lorikeet.v1 import (
    adapters_pb2_grpc,
    executor_pb2,
    executor_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    store_pb2_grpc,
)
from rpc.channel import open_channel
from rpc.server import Server
from tests.support.frontend_fake_executor import FakeExecutor, Script, engine_hello, token_by_position
from tests.support.frontend_fake_store import FakePacks, FakeStore
from tests.support.waiting import WAIT_SECONDS

LOOPBACK = "127.0.0.1:0"


async def serve_executor(executor: FakeExecutor, address: str = LOOPBACK) -> tuple[Server, str]:
    server = Server()
    server.add(
        "lorikeet.v1.ExecutorService", executor_pb2_grpc.add_ExecutorServiceServicer_to_server, executor
    )
    return server, await server.start(address)


async def serve_store(store: FakeStore, address: str = LOOPBACK) -> tuple[Server, str]:
    server = Server()
    server.add("lorikeet.v1.CatalogService", store_pb2_grpc.add_CatalogServiceServicer_to_server, store)
    server.add("lorikeet.v1.PackService", store_pb2_grpc.add_PackServiceServicer_to_server, FakePacks(store))
    return server, await server.start(address)


@dataclass(eq=False, kw_only=True)
class Rig:
    """What a test holds: clients' stubs, the frontend, and what stands behind it."""

    address: str
    channel: grpc.aio.Channel
    frontend: Frontend
    executor: FakeExecutor
    executor_server: Server
    executor_address: str
    store: FakeStore
    store_server: Server
    store_address: str

    @property
    def generation(self) -> generation_pb2_grpc.GenerationServiceStub:
        return generation_pb2_grpc.GenerationServiceStub(self.channel)

    @property
    def adapters(self) -> adapters_pb2_grpc.AdapterServiceStub:
        return adapters_pb2_grpc.AdapterServiceStub(self.channel)

    async def generate(self, **fields: Any) -> list[generation_pb2.GenerateResponse]:
        """All responses of one Generate call."""
        request = generation_pb2.GenerateRequest(**fields)
        return [response async for response in self.generation.Generate(request, timeout=WAIT_SECONDS)]

    async def until_connected(self) -> None:
        """Returns once the frontend has met its executor."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.generation.GetModel(generation_pb2.GetModelRequest())
                    return

    async def kill_executor(self) -> None:
        await self.executor_server.drain(0)

    async def restart_executor(self, executor: FakeExecutor) -> None:
        self.executor = executor
        self.executor_server, _ = await serve_executor(executor, self.executor_address)

    async def assert_idle(self) -> None:
        """Asserts that neither side has a request left; the executor hears of the end within a message."""
        statistics = self.frontend.statistics()
        assert (statistics["flights"], statistics["texts_waiting"]) == (0, 0)
        self.frontend.flights.check_integrity()
        async with asyncio.timeout(WAIT_SECONDS):
            await self.executor.until(lambda: self.executor.running == 0)


def text_of(responses: Sequence[generation_pb2.GenerateResponse], index: int = 0) -> str:
    return "".join(response.text for response in responses if response.index == index)


def ids_of(responses: Sequence[generation_pb2.GenerateResponse], index: int = 0) -> list[int]:
    return [token for response in responses if response.index == index for token in response.token_ids]


def hello_for(folder: Path, **fields: Any) -> executor_pb2.EngineHello:
    model = read_model_folder(folder, max_prompt_bytes=1 << 20)
    return engine_hello(
        model_type=model.model_type,
        tokenizer_digest=model.tokenizer_digest,
        vocab_size=model.vocab_size,
        **fields,
    )


@contextlib.asynccontextmanager
async def running_rig(
    folder: Path,
    *,
    script: Script = token_by_position,
    free_running: bool = True,
    context_length: int = 512,
    adapters: dict[str, str] | None = None,
    wait_ready: bool = True,
    **config: Any,
) -> AsyncIterator[Rig]:
    """Starts everything, and stops it in order. `adapters`: names and digests in the store from the start."""
    hello = hello_for(folder, context_length=context_length)
    executor = FakeExecutor(hello=hello, script=script, free_running=free_running)
    store = FakeStore()
    store.digests |= adapters or {}
    async with contextlib.AsyncExitStack() as stack:
        # Sockets of our own: a port that is given up for a while may be another's when it is asked for again.
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="lorikeet-rig-"))
        executor_server, executor_address = await serve_executor(executor, f"unix:{sockets}/executor")
        store_server, store_address = await serve_store(store, f"unix:{sockets}/store")
        stack.push_async_callback(store_server.drain, 0)
        settings: dict[str, Any] = {
            "executor": executor_address,
            "store": store_address,
            "drain_seconds": 0.0,
            "patience_seconds": WAIT_SECONDS,
        }
        frontend = Frontend(FrontendConfig(model_dir=folder, listen=LOOPBACK, **(settings | config)))
        address = await frontend.start()
        stack.push_async_callback(frontend.stop)
        if wait_ready:
            async with asyncio.timeout(WAIT_SECONDS):
                await frontend.ready()
        channel = open_channel(address)
        stack.push_async_callback(channel.close)
        rig = Rig(
            address=address,
            channel=channel,
            frontend=frontend,
            executor=executor,
            executor_server=executor_server,
            executor_address=executor_address,
            store=store,
            store_server=store_server,
            store_address=store_address,
        )
        try:
            yield rig
        finally:
            await rig.executor_server.drain(0)
