"""Speed of an upload into a store on loopback: `python -m bench.uploads`.

Sends an adapter of the shape of Qwen3-8B, rank 16, bf16 (87 MB), to a store in this process; prints the speed
of the transfer and the time from the commit to the answer.
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.adapter_loads import RANK, layout_of, slices_of, targets_of, tensors_of
from cli.uploading import Tensor, messages
from lorikeet.v1 import adapters_pb2
from tests.support.store_adapters import lora_config
from tests.support.store_server import running_store

SHAPE = "qwen3-8b"


def tensors(noise: bytes) -> Iterator[Tensor]:
    for name, (rows, columns) in tensors_of(SHAPE, slices_of(SHAPE)).items():
        data = memoryview(noise)[: 2 * rows * columns]
        yield Tensor(name=name, dtype="BF16", shape=(rows, columns), data=data)


async def once(running, number: int) -> tuple[int, float, float]:
    # Bytes below 0x7f: every bf16 is finite.
    noise = bytes(byte & 0x3F for byte in os.urandom(2 * RANK * 12288))
    config = json.dumps(lora_config(tuple(targets_of(SHAPE)), r=RANK))
    sent = list(messages(f"bench-{number}", config, tensors(noise)))
    size = sum(len(message.tensor.data) for message in sent)
    call = running.catalog.Upload()
    start = time.perf_counter()
    for message in sent[:-1]:
        await call.write(message)
    spooled = time.perf_counter()
    await call.write(adapters_pb2.UploadAdapterRequest(commit=adapters_pb2.UploadCommit()))
    await call.done_writing()
    await call
    return size, spooled - start, time.perf_counter() - spooled


async def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        async with running_store(Path(folder), arena_bytes=1 << 30, drain_seconds=5.0) as running:
            await running.register(layout_of(slices_of(SHAPE)))
            for number in range(4):
                size, transfer, commit = await once(running, number)
                print(
                    f"{size / 1e6:.1f} MB in {transfer:.3f} s ({size / 1e6 / transfer:.0f} MB/s), "
                    f"commit to answer {commit:.3f} s"
                )


if __name__ == "__main__":
    asyncio.run(main())
