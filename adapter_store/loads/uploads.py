"""Adapters that come as messages: spooled into a folder of the disk tier, then loaded like any other."""

import asyncio
import io
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from pathlib import Path

from adapter_store.catalog.views import AdapterView
from adapter_store.concurrency.calls import uninterrupted
from adapter_store.concurrency.workers import Workers
from adapter_store.formats.peft_config import parse_peft_config
from adapter_store.formats.safetensors_files import CONFIG_NAME
from adapter_store.loads.request import LoadRequest
from adapter_store.loads.upload_protocol import DATA_START, Chunk, UploadProtocol
from adapter_store.tiers.disk import DiskTier
from adapter_store.tiers.files import disk_errors, file_errors
from lorikeet.v1 import adapters_pb2
from rpc.errors import LorikeetError, aborted, invalid_argument, resource_exhausted
from rpc.refusing import read_to_end

Messages = AsyncIterator[adapters_pb2.UploadAdapterRequest]
Load = Callable[[LoadRequest], Awaitable[tuple[AdapterView, bool]]]


class Uploads:
    """Takes uploads in. Belongs to the event loop.

    Args:
        disk: where they are spooled.
        worker: the one thread that writes: what is given up is closed after its last write.
        load: what becomes of a whole upload.
        max_uploads: taken in at once; one more is refused.
        max_bytes: of one upload.
        idle_seconds: how long one may say nothing before it is given up.
        most_seconds: how long one may take to arrive.
    """

    def __init__(
        self,
        *,
        disk: DiskTier,
        worker: Workers,
        load: Load,
        max_uploads: int,
        max_bytes: int,
        idle_seconds: float,
        most_seconds: float,
    ) -> None:
        self._disk = disk
        self._worker = worker
        self._load = load
        self._max_uploads = max_uploads
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds
        self._most_seconds = most_seconds
        self._running = 0

    @property
    def running(self) -> int:
        """Uploads that are being taken in."""
        return self._running

    async def receive(
        self, requests: AsyncIterable[adapters_pb2.UploadAdapterRequest]
    ) -> tuple[AdapterView, bool]:
        """Takes one upload from its first message to its load; leaves nothing behind when it fails.

        Raises:
            LorikeetError: see AdapterService.UploadAdapter.
        """
        try:
            with file_errors():
                return await self._receive_one(requests)
        except LorikeetError:
            await read_to_end(requests)
            raise

    async def _receive_one(
        self, requests: AsyncIterable[adapters_pb2.UploadAdapterRequest]
    ) -> tuple[AdapterView, bool]:
        if self._running >= self._max_uploads:
            raise resource_exhausted(
                "TOO_MANY_UPLOADS", f"{self._max_uploads} uploads are running already", retry_after=1.0
            )
        self._running += 1
        try:
            messages = self._timed(aiter(requests))
            protocol = UploadProtocol(max_bytes=self._max_bytes)
            start = protocol.start(await anext(messages, None))
            # Before anything is sent in vain.
            await self._worker.run(parse_peft_config, start.config_json.encode())
            return await self._receive(protocol, start, messages)
        finally:
            self._running -= 1

    async def _receive(
        self, protocol: UploadProtocol, start: adapters_pb2.UploadStart, messages: Messages
    ) -> tuple[AdapterView, bool]:
        spool = _Spool(self._disk.stage())
        try:
            while (commit := await self._take(protocol, spool, messages)) is None:
                pass
            digest = protocol.commit(commit)
            await self._worker.run(spool.finish, protocol, start.config_json)
            request = LoadRequest(
                name=start.name,
                reader=SpoolReader(spool.folder),
                expected_digest=start.expected_digest,
                pinned=start.pinned if start.HasField("pinned") else None,
                tenant=start.tenant,
                content_digest=digest,
                is_shared=False,
            )
            # The load goes on when the caller leaves, and must not lose its files meanwhile.
            return await uninterrupted(_awaited(self._load(request)))
        finally:
            await uninterrupted(self._discard(spool))

    async def _take(
        self, protocol: UploadProtocol, spool: "_Spool", messages: Messages
    ) -> adapters_pb2.UploadCommit | None:
        """Spools one message; the commit when it is that."""
        message = await anext(messages, None)
        match message.WhichOneof("message") if message is not None else "end":
            case "tensor" if message is not None:
                await self._worker.run(spool.append, protocol.tensor(message.tensor))
                return None
            case "commit" if message is not None:
                return message.commit
            case "end":
                raise invalid_argument("NO_COMMIT", "the upload ended without UploadCommit: start again")
            case "start":
                raise invalid_argument("SECOND_START", "UploadStart is the first message only")
            case _:
                raise invalid_argument(
                    "UNKNOWN_MESSAGE", "this store does not know that message: versions differ"
                )

    async def _timed(self, messages: Messages) -> Messages:
        """The same messages, as long as they come in time."""
        clock = asyncio.get_running_loop().time
        end = clock() + self._most_seconds
        while True:
            idle_end = clock() + self._idle_seconds
            try:
                async with asyncio.timeout_at(min(idle_end, end)):
                    message = await anext(messages, None)
            except TimeoutError:
                raise self._late(is_idle=idle_end < end) from None
            if message is None:
                return
            yield message

    def _late(self, *, is_idle: bool) -> LorikeetError:
        if is_idle:
            return aborted(
                "UPLOAD_IDLE",
                f"no message came for {self._idle_seconds:g} s: start the upload again and send faster",
            )
        return aborted(
            "UPLOAD_SLOW",
            f"the upload did not end within {self._most_seconds:g} s (upload_seconds): start it again and "
            "send faster, or let the store load it from a folder or bucket",
        )

    async def _discard(self, spool: "_Spool") -> None:
        await self._worker.run(spool.close)
        await self._worker.run(self._disk.discard, spool.folder)


class SpoolReader:
    """A spooled upload as a `SourceReader`: its files move, no byte is copied."""

    source = "upload"
    is_remote = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def copy(
        self,
        staged: Path,
        max_bytes: int,
        progress: Callable[[int, int], None],
        headers_there: Callable[[], object] = lambda: None,
    ) -> tuple[str, ...]:
        """See `SourceReader.copy`. Its size was bounded as it came."""
        paths = list(self._folder.iterdir())
        total = sum(path.stat().st_size for path in paths)
        for path in paths:
            path.rename(staged / path.name)
        progress(total, total)
        return ()


class _Spool:
    """The files of one upload. Its methods run on worker threads, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = -1
        self._file: io.FileIO | None = None

    def append(self, chunk: Chunk) -> None:
        with disk_errors():
            if chunk.file != self._number or self._file is None:
                self.close()
                self._number = chunk.file
                self._file = io.FileIO(self._path(chunk.file), "w")
                self._file.seek(DATA_START)
            rest = memoryview(chunk.data)
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self, protocol: UploadProtocol, config_json: str) -> None:
        """Writes what stands around the data, and gives the files their names."""
        self.close()
        with disk_errors():
            for number, (name, header) in enumerate(
                zip(protocol.file_names(), protocol.headers(), strict=True)
            ):
                with self._path(number).open("r+b") as file:
                    file.write(header)
                self._path(number).rename(self.folder / name)
            if index := protocol.index():
                (self.folder / index[0]).write_bytes(index[1])
            (self.folder / CONFIG_NAME).write_text(config_json, encoding="utf-8")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.part"


async def _awaited(load: Awaitable[tuple[AdapterView, bool]]) -> tuple[AdapterView, bool]:
    return await load
