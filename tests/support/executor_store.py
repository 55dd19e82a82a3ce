"""A small adapter store in the test's own process: a real arena file and a real PackService, moved by
hand.
"""

import asyncio
import mmap
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from lorikeet.v1 import layout_pb2, store_pb2, store_pb2_grpc
from rpc.digests import layout_digest
from rpc.errors import not_found
from rpc.server import Server
from tests.support.waiting import WAIT_SECONDS

ARENA_BYTES = 1 << 16
HEADER = struct.Struct("<8sQ")


def small_layout(max_pack_bytes: int = 1 << 14) -> layout_pb2.Layout:
    """Two linear slices of 16 x 16 in float32."""
    return layout_pb2.Layout(
        pack_format_version=2,
        base_digest="0" * 64,
        base_name="tiny",
        compute_dtype=layout_pb2.TENSOR_TYPE_FLOAT32,
        tensor_parallel_size=1,
        alignment_bytes=128,
        rank_multiple=8,
        max_rank=16,
        slices=[
            layout_pb2.SliceSpec(
                module=f"m{i}", kind=layout_pb2.SLICE_KIND_LINEAR, in_features=16, out_features=16
            )
            for i in range(2)
        ],
        max_pack_bytes=max_pack_bytes,
    )


def digest_of(letter: str) -> str:
    return letter * 64


@dataclass
class Pack:
    header_offset: int
    generation: int
    manifest: layout_pb2.PackManifest


@dataclass
class Stream:
    hello: store_pb2.LeaseHello
    outgoing: asyncio.Queue[store_pb2.LeaseResponse] = field(default_factory=asyncio.Queue)
    leases: dict[int, str] = field(default_factory=dict)


class SmallStore(store_pb2_grpc.PackServiceServicer):
    """What is granted, held and told is there to be looked at."""

    def __init__(self, folder: Path, layout: layout_pb2.Layout) -> None:
        self.folder = folder
        self.layout = layout
        self.layout_digest = layout_digest(layout)
        path = folder / "arena"
        if not path.exists():
            path.write_bytes(bytes(ARENA_BYTES))
        with path.open("r+b") as file:
            self.arena = mmap.mmap(file.fileno(), ARENA_BYTES)
        self.packs: dict[str, Pack] = {}
        self.refusals: dict[str, store_pb2.LeaseRefusal] = {}
        self.streams: list[Stream] = []
        self.granting = asyncio.Event()
        self.granting.set()
        self.acquires: list[str] = []
        self.used: list[str] = []
        self.prefetches: list[str] = []
        self.retired: list[str] = []
        self.changed = asyncio.Condition()
        self._end = 0
        self._server = Server()

    async def start(self, address: str) -> str:
        self._server.add("lorikeet.v1.PackService", store_pb2_grpc.add_PackServiceServicer_to_server, self)
        return await self._server.start(address)

    async def kill(self) -> None:
        await self._server.drain(0)

    def put(self, letter: str, *, rank: int = 8, fill: int | None = None) -> str:
        """Writes a pack full of the letter's code and makes it leasable. Returns its digest."""
        digest = digest_of(letter)
        tensor = 16 * 8 * -(-rank // 8) * 4
        manifest = layout_pb2.PackManifest(
            digest=digest, layout_digest=self.layout_digest, total_bytes=2 * tensor
        )
        manifest.slices.add(
            slice=0, a_offset=0, b_offset=tensor, rank=rank, padded_rank=-(-rank // 8) * 8, scaling=2.0
        )
        offset, self._end = self._end, self._end + 128 + 2 * tensor
        generation = 2
        self._write_header(offset, generation)
        self.arena[offset + 128 : self._end] = bytes([fill or ord(letter)]) * (2 * tensor)
        self.packs[digest] = Pack(offset, generation, manifest)
        return digest

    def bytes_of(self, digest: str) -> bytes:
        pack = self.packs[digest]
        start = pack.header_offset + 128
        return self.arena[start : start + pack.manifest.total_bytes]

    def move(self, digest: str) -> None:
        """Frees the pack's place, spoils it, and puts the pack elsewhere."""
        old = self.packs[digest]
        content = self.bytes_of(digest)
        self._write_header(old.header_offset, old.generation + 1)
        self.arena[old.header_offset + 128 : old.header_offset + 128 + len(content)] = b"\xee" * len(content)
        offset, self._end = self._end, self._end + 128 + len(content)
        self._write_header(offset, 2)
        self.arena[offset + 128 : self._end] = content
        self.packs[digest] = Pack(offset, 2, old.manifest)

    def retire(self, digest: str) -> None:
        for stream in self.streams:
            stream.outgoing.put_nowait(store_pb2.LeaseResponse(retire=store_pb2.RetireAdapter(digest=digest)))

    @property
    def leases(self) -> int:
        return sum(len(stream.leases) for stream in self.streams)

    async def until(self, predicate: Any) -> None:
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(predicate), WAIT_SECONDS)

    async def RegisterLayout(  # noqa: N802
        self, request: Any, context: Any
    ) -> store_pb2.RegisterLayoutResponse:
        return store_pb2.RegisterLayoutResponse(
            layout_digest=layout_digest(request.layout), arena_file="arena", arena_bytes=ARENA_BYTES
        )

    async def Lease(self, request_iterator: Any, context: grpc.aio.ServicerContext) -> None:  # noqa: N802
        first = await anext(request_iterator)
        stream = Stream(first.hello)
        self.streams.append(stream)
        writer = asyncio.create_task(self._write(stream, context))
        try:
            await self._note()
            async for request in request_iterator:
                await self._handle(stream, request)
                await self._note()
        finally:
            writer.cancel()
            self.streams.remove(stream)

    async def FetchPack(self, request: Any, context: Any) -> AsyncIterator[store_pb2.PackChunk]:  # noqa: N802
        if request.digest not in self.packs:
            raise not_found("PACK_NOT_FOUND", "no such pack")
        content = self.bytes_of(request.digest)
        yield store_pb2.PackChunk(manifest=self.packs[request.digest].manifest, data=content[:100])
        for start in range(100, len(content), 300):
            yield store_pb2.PackChunk(data=content[start : start + 300])

    def _write_header(self, offset: int, generation: int) -> None:
        self.arena[offset : offset + 16] = HEADER.pack(b"LRKTPACK", generation)

    async def _note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _write(self, stream: Stream, context: grpc.aio.ServicerContext) -> None:
        while True:
            response = await stream.outgoing.get()
            if response.WhichOneof("message") != "retire":
                await self.granting.wait()
            await context.write(response)

    async def _handle(self, stream: Stream, request: store_pb2.LeaseRequest) -> None:
        match request.WhichOneof("message"):
            case "acquire":
                self._acquire(stream, request.acquire)
            case "release":
                stream.leases.pop(request.release.lease, None)
            case "used":
                self.used.append(request.used.digest)
            case "prefetch":
                self.prefetches.append(request.prefetch.digest)
            case "retired":
                self.retired.append(request.retired.digest)
            case "batch":
                for each in request.batch.requests:
                    await self._handle(stream, each)

    def _acquire(self, stream: Stream, acquire: store_pb2.AcquireLease) -> None:
        self.acquires.append(acquire.digest)
        pack = self.packs.get(acquire.digest)
        if pack is None:
            refusal = self.refusals.get(
                acquire.digest,
                store_pb2.LeaseRefusal(code=5, reason="PACK_NOT_FOUND", message="no such pack"),
            )
            refusal.lease = acquire.lease
            stream.outgoing.put_nowait(store_pb2.LeaseResponse(refusal=refusal))
            return
        stream.leases[acquire.lease] = acquire.digest
        grant = store_pb2.LeaseGrant(
            lease=acquire.lease,
            header_offset=pack.header_offset,
            pack_offset=pack.header_offset + 128,
            generation=pack.generation,
            manifest=pack.manifest,
        )
        stream.outgoing.put_nowait(store_pb2.LeaseResponse(grant=grant))
