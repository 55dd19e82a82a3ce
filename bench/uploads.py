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

from cli.uploading import Tensor, messages
from lorikeet.v1 import adapters_pb2, layout_pb2
from tests.support.store_adapters import lora_config
from tests.support.store_server import running_store

LAYERS, RANK = 36, 16
LINEARS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 1024),
    "self_attn.v_proj": (4096, 1024),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 12288),
    "mlp.up_proj": (4096, 12288),
    "mlp.down_proj": (12288, 4096),
}


def layout() -> layout_pb2.Layout:
    result = layout_pb2.Layout(
        pack_format_version=2,
        base_digest="0" * 64,
        base_name="bench",
        compute_dtype=layout_pb2.TENSOR_TYPE_BFLOAT16,
        tensor_parallel_size=1,
        alignment_bytes=128,
        rank_multiple=8,
        max_rank=64,
    )
    for layer in range(LAYERS):
        for name, (inputs, outputs) in LINEARS.items():
            result.slices.add(
                module=f"model.layers.{layer}.{name}",
                kind=layout_pb2.SLICE_KIND_LINEAR,
                in_features=inputs,
                out_features=outputs,
            )
    return result


def tensors(noise: bytes) -> Iterator[Tensor]:
    for layer in range(LAYERS):
        for name, (inputs, outputs) in LINEARS.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            for part, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
                data = memoryview(noise)[: 2 * shape[0] * shape[1]]
                yield Tensor(name=f"{stem}.{part}.weight", dtype="BF16", shape=shape, data=data)


async def once(running, number: int) -> tuple[int, float, float]:
    # Bytes below 0x7f: every bf16 is finite.
    noise = bytes(byte & 0x3F for byte in os.urandom(2 * RANK * 12288))
    targets = tuple(name.split(".")[1] for name in LINEARS)
    config = json.dumps(lora_config(targets, r=RANK))
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
            await running.register(layout())
            for number in range(4):
                size, transfer, commit = await once(running, number)
                print(
                    f"{size / 1e6:.1f} MB in {transfer:.3f} s ({size / 1e6 / transfer:.0f} MB/s), "
                    f"commit to answer {commit:.3f} s"
                )


if __name__ == "__main__":
    asyncio.run(main())
