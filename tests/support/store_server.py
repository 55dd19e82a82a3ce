"""A real adapter store in the test's own process, over gRPC on a free port, and its clients' side."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc

from adapter_store.app import AdapterStore
from adapter_store.config import StoreConfig
from lorikeet.v1 import adapters_pb2, layout_pb2, store_pb2, store_pb2_grpc
from rpc.channel import open_channel
from rpc.errors import LorikeetError, from_rpc
from rpc.server import Server
from tests.support.store_adapters import toy_layout
from tests.support.waiting import WAIT_SECONDS


@dataclass(kw_only=True)
class RunningStore:
    """A store and stubs that talk to it."""

    store: AdapterStore
    config: StoreConfig
    address: str
    catalog: Any
    packs: Any

    async def load(self, name: str, source: Path | str):
        request = adapters_pb2.LoadAdapterRequest(name=name, source=str(source))
        return await self.catalog.Load(request, timeout=WAIT_SECONDS)

    async def unload(self, name: str, *, force: bool = False):
        request = adapters_pb2.UnloadAdapterRequest(name=name, force=force)
        return await self.catalog.Unload(request, timeout=WAIT_SECONDS)

    async def register(self, layout: layout_pb2.Layout | None = None):
        request = store_pb2.RegisterLayoutRequest(layout=layout or toy_layout())
        return await self.packs.RegisterLayout(request, timeout=WAIT_SECONDS)

    async def settled(self) -> None:
        """Waits until nothing is under way in the background."""

        def is_idle() -> bool:
            now = self.store.statistics()
            return not (now.running_work or now.coming_packs or now.pending_loads or now.disk.incoming)

        await eventually(is_idle)

    @property
    def arena(self) -> bytes:
        """The arena as an executor that maps it sees it."""
        (path,) = self.config.arena_folder.glob("arena-*")
        return path.read_bytes()


@asynccontextmanager
async def running_store(folder: Path, **changes: Any) -> AsyncIterator[RunningStore]:
    """Opens a store in `folder` (data, arena, and `folder/adapters` as its root) and closes it at the end."""
    (folder / "adapters").mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "data_dir": folder / "data",
        "listen": "127.0.0.1:0",
        "roots": (folder / "adapters",),
        "arena_dir": folder / "arena",
        "arena_bytes": 1 << 20,
        "executor_grace_seconds": 0.0,
        "drain_seconds": 0.0,
    }
    config = StoreConfig(**(settings | changes))
    store = AdapterStore.open(config)
    server = Server()
    catalog, packs = store.servicers()
    server.add("lorikeet.v1.CatalogService", store_pb2_grpc.add_CatalogServiceServicer_to_server, catalog)
    server.add("lorikeet.v1.PackService", store_pb2_grpc.add_PackServiceServicer_to_server, packs)
    address = await server.start(config.listen)
    channel = open_channel(address)
    try:
        yield RunningStore(
            store=store,
            config=config,
            address=address,
            catalog=store_pb2_grpc.CatalogServiceStub(channel),
            packs=store_pb2_grpc.PackServiceStub(channel),
        )
        store.check_integrity()
    finally:
        store.cut_streams()
        await channel.close()
        await server.drain(0)
        await store.close()


class FollowerClient:
    """A frontend's side of Follow; acknowledges only when told to."""

    def __init__(self, running: RunningStore) -> None:
        self.call = running.catalog.Follow()
        self.pointers: dict[str, str] = {}
        self.revision = -1

    async def start(self) -> "FollowerClient":
        await self.call.write(store_pb2.FollowRequest())
        await self.next()
        return self

    async def next(self):
        response = await asyncio.wait_for(self.call.read(), WAIT_SECONDS)
        if response is grpc.aio.EOF:
            raise AssertionError(f"the stream ended: {await self.call.details()}")
        if response.snapshot:
            self.pointers = {}
        for pointer in response.pointers:
            self.pointers[pointer.name] = pointer.digest
        self.pointers = {name: digest for name, digest in self.pointers.items() if digest}
        self.revision = response.revision
        return response

    async def acknowledge(self, revision: int | None = None) -> None:
        request = store_pb2.FollowRequest(
            acknowledged_revision=self.revision if revision is None else revision
        )
        await self.call.write(request)


class Leasable(Protocol):
    """Where an executor leases: a PackService's stub, and the arena's bytes as they are now."""

    packs: Any

    @property
    def arena(self) -> bytes: ...


class ExecutorClient:
    """An executor's side of Lease, over the arena's file."""

    def __init__(self, running: Leasable, layout_digest: str, held: Any = ()) -> None:
        self._running = running
        self._hello = store_pb2.LeaseHello(layout_digest=layout_digest, incarnation="test", held=held)
        self.call = running.packs.Lease()
        # Digests to retire that came while another answer was waited for.
        self.told: list[str] = []
        self._waiting: list[store_pb2.LeaseResponse] = []

    async def start(self) -> "ExecutorClient":
        await self.call.write(store_pb2.LeaseRequest(hello=self._hello))
        return self

    async def acquire(self, lease: int, digest: str):
        """Asks and returns the grant or refusal."""
        await self.ask(lease, digest)
        while (message := await self.next()).DESCRIPTOR.name == "RetireAdapter":
            self.told.append(message.digest)
        return message

    async def ask(self, lease: int, digest: str) -> None:
        await self.call.write(
            store_pb2.LeaseRequest(acquire=store_pb2.AcquireLease(lease=lease, digest=digest))
        )

    async def release(self, lease: int) -> None:
        await self.call.write(store_pb2.LeaseRequest(release=store_pb2.ReleaseLease(lease=lease)))

    async def used(self, digest: str) -> None:
        await self.call.write(store_pb2.LeaseRequest(used=store_pb2.UsedPack(digest=digest)))

    async def retired(self, digest: str) -> None:
        await self.call.write(store_pb2.LeaseRequest(retired=store_pb2.RetiredAdapter(digest=digest)))

    async def next(self):
        if not self._waiting:
            response = await asyncio.wait_for(self.call.read(), WAIT_SECONDS)
            if response is grpc.aio.EOF:
                raise await error_of(self.call)
            is_batch = response.WhichOneof("message") == "batch"
            self._waiting += response.batch.responses if is_batch else [response]
        response = self._waiting.pop(0)
        return getattr(response, response.WhichOneof("message"))

    def copy(self, grant: Any) -> bytes:
        """The pack's bytes, as an executor copies them, generation checked after."""
        data = self.copy_unasked(grant)
        assert data is not None, "a leased pack has left its place"
        return data

    def copy_unasked(self, grant: Any) -> bytes | None:
        """The same without a lease: None where the pack has left."""
        data = self._running.arena[grant.pack_offset : grant.pack_offset + grant.manifest.total_bytes]
        # Seen after the bytes.
        header = self._running.arena[grant.header_offset : grant.header_offset + 16]
        return data if header == b"LRKTPACK" + grant.generation.to_bytes(8, "little") else None


async def error_of(call: Any) -> LorikeetError:
    """The error that a call ends with."""
    try:
        await asyncio.wait_for(call, WAIT_SECONDS) if hasattr(call, "__await__") else await call.read()
    except grpc.aio.AioRpcError as error:
        return from_rpc(error)
    code = await call.code()
    raise AssertionError(f"the call ended with {code}")


async def eventually(condition: Any) -> None:
    """Waits until a condition holds; fails after WAIT_SECONDS."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.002)
