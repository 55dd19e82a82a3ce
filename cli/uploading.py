"""Uploading an adapter whose weights lie in this process, or in a folder that the server cannot read.

Needs neither torch nor numpy: a tensor is its name, dtype, shape and bytes.
"""

import asyncio
import json
import mmap
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import usage_error, why
from lorikeet.v1 import adapters_pb2 as pb

if TYPE_CHECKING:
    from lorikeet.v1 import adapters_pb2_grpc

CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of an adapter, as PEFT names it.

    Args:
        name: for example "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".
        dtype: "F32", "BF16" or "F16".
        shape: extents, outermost first.
        data: its elements, little endian and row-major; anything with the buffer protocol.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    data: "bytes | bytearray | memoryview | Any"


def messages(
    name: str,
    config_json: str,
    tensors: Iterable[Tensor],
    *,
    digest: str = "",
    expected_digest: str = "",
    pinned: bool | None = None,
    tenant: str = "",
) -> Iterator[pb.UploadAdapterRequest]:
    """The messages of one UploadAdapter call; takes one tensor at a time from `tensors`.

    Args:
        name: of the adapter.
        config_json: the text of adapter_config.json.
        digest: what the content must be when it has arrived; empty: no condition.
        expected_digest, pinned, tenant: as in LoadAdapterRequest.
    """
    yield pb.UploadAdapterRequest(
        start=pb.UploadStart(
            name=name,
            config_json=config_json,
            expected_digest=expected_digest,
            pinned=pinned,
            tenant=tenant,
        )
    )
    for tensor in tensors:
        yield from _chunks(tensor)
    yield pb.UploadAdapterRequest(commit=pb.UploadCommit(digest=digest))


async def upload(
    adapters: "adapters_pb2_grpc.AdapterServiceStub",
    requests: Iterable[pb.UploadAdapterRequest],
    *,
    deadline: float | None = None,
) -> pb.LoadAdapterResponse:
    """Sends the messages as fast as the server takes them, for `deadline` seconds at most.

    Raises grpc.aio.AioRpcError, or what `requests` raises.
    """
    failed: list[Exception] = []

    async def each() -> AsyncIterator[pb.UploadAdapterRequest]:
        # gRPC cancels a call whose requests fail, and says nothing of why.
        try:
            for request in requests:
                yield request
        except Exception as error:
            failed.append(error)
            raise

    call: Any = adapters.UploadAdapter(each(), timeout=deadline)
    try:
        return await call
    except asyncio.CancelledError:
        if failed:
            raise failed[0] from None
        raise


def folder_config(folder: Path) -> str:
    """The text of a PEFT folder's adapter_config.json. Raises CliError."""
    path = folder / "adapter_config.json"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise usage_error(f"{path} cannot be read: {why(error)}; give the folder that PEFT saved") from error


def folder_tensors(folder: Path) -> Iterator[Tensor]:
    """The tensors of a PEFT folder, read as they are asked for. Raises CliError."""
    paths = sorted(folder.glob("adapter_model*.safetensors"))
    if not paths:
        raise usage_error(
            f"{folder} has no adapter_model.safetensors: convert what is there with save_pretrained"
        )
    for path in paths:
        yield from _file_tensors(path)


def _file_tensors(path: Path) -> Iterator[Tensor]:
    # The server checks what arrives; here only what would break this reader is checked.
    try:
        with path.open("rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        start = 8 + int.from_bytes(mapped[:8], "little")
        if start > min(len(mapped), _MAX_HEADER_BYTES):
            raise ValueError("its header is longer than the file")
        header = json.loads(bytes(mapped[8:start]))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (start + offset for offset in entry["data_offsets"])
            yield Tensor(name=name, dtype=entry["dtype"], shape=entry["shape"], data=mapped[begin:end])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise usage_error(f"{path} is not a safetensors file: {why(error)}") from error


def _chunks(tensor: Tensor) -> Iterator[pb.UploadAdapterRequest]:
    data = memoryview(tensor.data).cast("B")
    try:
        head = pb.UploadTensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)
    except (TypeError, ValueError) as error:
        raise usage_error(f"{tensor.name!r} of {tensor.dtype!r} and {tensor.shape!r} is no tensor") from error
    for start in range(0, max(len(data), 1), CHUNK_BYTES):
        head.data = bytes(data[start : start + CHUNK_BYTES])
        yield pb.UploadAdapterRequest(tensor=head)
        head = pb.UploadTensor()
