"""How long an adapter takes into memory: cold from a page-cached source, from the disk tier, and warm.

    python bench/adapter_loads.py --shape qwen3-8b --rounds 5 --out bench/results/adapter_loads.json

Makes adapters of random bytes in a temporary folder (--folder), starts a store process of its own, and plays
its client and its executor. Without --device it needs no GPU and no torch; with it, the executor's own code
brings the leased pack into a pool on that device. Of a cold load it tells the milliseconds from the request
to the pack that can be leased, to the reply (which follows once the adapter is durable), and by stage.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapter_store.formats.layout import ALIGNMENT_BYTES, PACK_FORMAT_VERSION
from lorikeet.v1 import adapters_pb2, layout_pb2, store_pb2, store_pb2_grpc
from rpc.channel import open_channel

ROOT = Path(__file__).resolve().parents[1]
RANK = 16
# The experts of each layer in one tensor, as PEFT's target_parameters are stored.
STACKED = "qwen3-30b-a3b-stacked"


def attention(hidden: int, heads: int, kv: int) -> dict[str, tuple[int, int]]:
    names = (
        ("q_proj", hidden, heads),
        ("k_proj", hidden, kv),
        ("v_proj", hidden, kv),
        ("o_proj", heads, hidden),
    )
    return {f"self_attn.{name}": (inputs, outputs) for name, inputs, outputs in names}


def mlp(prefix: str, hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    pairs = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    return {f"{prefix}.{name}": pair for name, pair in pairs.items()}


def slices_of(shape: str) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every adapted module, in the layout's order."""
    if shape == "qwen3-8b":
        layers, layer = 36, attention(4096, 4096, 1024) | mlp("mlp", 4096, 12288)
    else:
        layers, layer = 48, attention(2048, 4096, 512)
        for expert in range(128):
            layer |= mlp(f"mlp.experts.{expert}", 2048, 768)
    return {f"model.layers.{n}.{name}": pair for n in range(layers) for name, pair in layer.items()}


def tensors_of(shape: str, slices: dict[str, tuple[int, int]]) -> dict[str, list[int]]:
    """PEFT's names of what is trained, with their shapes, in the order of PEFT's files."""
    targets = targets_of(shape)
    found: dict[str, list[int]] = {}
    for module, (inputs, outputs) in slices.items():
        if module.rpartition(".")[2] in targets:
            found[f"{module}.lora_A"], found[f"{module}.lora_B"] = [RANK, inputs], [outputs, RANK]
    for layer in range(48) if shape == STACKED else ():
        experts = f"model.layers.{layer}.mlp.experts"
        for module, inputs, outputs in ((f"{experts}.base_layer", 2048, 2 * 768), (experts, 768, 2048)):
            found[f"{module}.lora_A"] = [128 * RANK, inputs]
            found[f"{module}.lora_B"] = [outputs, RANK * 128]
    return {f"base_model.model.{name}.weight": dims for name, dims in sorted(found.items())}


def targets_of(shape: str) -> list[str]:
    if shape == STACKED:
        return []
    mlp_names = ["gate_proj", "up_proj", "down_proj"]
    return [*(["q_proj", "k_proj", "v_proj", "o_proj"] if shape == "qwen3-8b" else []), *mlp_names]


def layout_of(slices: dict[str, tuple[int, int]]) -> layout_pb2.Layout:
    layout = layout_pb2.Layout(
        pack_format_version=PACK_FORMAT_VERSION,
        base_digest="0" * 64,
        base_name="synthetic",
        compute_dtype=layout_pb2.TENSOR_TYPE_BFLOAT16,
        tensor_parallel_size=1,
        alignment_bytes=ALIGNMENT_BYTES,
        rank_multiple=8,
        max_rank=64,
    )
    for module, (inputs, outputs) in slices.items():
        layout.slices.add(
            module=module, kind=layout_pb2.SLICE_KIND_LINEAR, in_features=inputs, out_features=outputs
        )
    return layout


def write_adapter(folder: Path, shape: str, slices: dict[str, tuple[int, int]]) -> int:
    """Writes finite random bfloat16 under PEFT's names, in the order of PEFT's files; returns the bytes."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": targets_of(shape),
        "target_parameters": ["gate_up_proj", "down_proj"] if shape == STACKED else None,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dims in tensors_of(shape, slices).items():
        end = position + 2 * dims[0] * dims[1]
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [position, end]}
        position = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    noise = np.random.default_rng(0).standard_normal(1 << 22, np.float32)
    block = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for start in range(0, position, len(block)):
            file.write(block[: position - start])
        # Durable, so that its writing back does not disturb what is measured.
        file.flush()
        os.fsync(file.fileno())
    return position


def change_adapter(folder: Path, number: int) -> None:
    """Another content, by eight bytes at the end."""
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(np.full(4, 0x3F80 + number, np.uint16).tobytes())


class Store:
    """A store process, its catalog's client and an executor's stream."""

    def __init__(self, folder: Path, arena_bytes: int) -> None:
        self.folder, self.arena_bytes = folder, arena_bytes
        self.arena_folder = Path(tempfile.mkdtemp(prefix="lorikeet-bench-", dir="/dev/shm"))

    async def start(self, layout: layout_pb2.Layout) -> None:
        socket = self.folder / "socket"
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", "store", "--data-dir", str(self.folder / "data")),
            *("--listen", f"unix:{socket}", "--roots", str(self.folder / "sources")),
            *("--arena-dir", str(self.arena_folder), "--arena-bytes", str(self.arena_bytes)),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.channel = open_channel(f"unix:{socket}")
        self.catalog: Any = store_pb2_grpc.CatalogServiceStub(self.channel)
        self.packs: Any = store_pb2_grpc.PackServiceStub(self.channel)
        request = store_pb2.RegisterLayoutRequest(layout=layout)
        answer = await self.packs.RegisterLayout(request, wait_for_ready=True, timeout=60)
        self.lease = self.packs.Lease()
        self._waiting: list[store_pb2.LeaseResponse] = []
        hello = store_pb2.LeaseHello(layout_digest=answer.layout_digest, incarnation="bench")
        await self.lease.write(store_pb2.LeaseRequest(hello=hello))
        self.arena = np.memmap(self.arena_folder / answer.arena_file, np.uint8, "r")

    async def acquire(self, number: int, digest: str) -> store_pb2.LeaseGrant:
        ask = store_pb2.AcquireLease(lease=number, digest=digest)
        await self.lease.write(store_pb2.LeaseRequest(acquire=ask))
        while (response := await self._next()).HasField("retire"):
            retired = store_pb2.RetiredAdapter(digest=response.retire.digest)
            await self.lease.write(store_pb2.LeaseRequest(retired=retired))
        assert response.HasField("grant"), response
        return response.grant

    async def _next(self) -> store_pb2.LeaseResponse:
        if not self._waiting:
            response = await self.lease.read()
            self._waiting += response.batch.responses if response.HasField("batch") else [response]
        return self._waiting.pop(0)

    async def release(self, number: int) -> None:
        await self.lease.write(store_pb2.LeaseRequest(release=store_pb2.ReleaseLease(lease=number)))

    async def stop(self) -> None:
        self.lease.cancel()
        await self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(self.process.wait(), 60)

    def drop_memory(self) -> None:
        """The memory tier is lost, as after a restart of the machine."""
        del self.arena
        shutil.rmtree(self.arena_folder)
        self.arena_folder.mkdir(mode=0o700)


@dataclass
class Figures:
    """Milliseconds, one entry a round."""

    to_lease: list[float] = field(default_factory=list)
    to_reply: list[float] = field(default_factory=list)
    copied: list[float] = field(default_factory=list)
    checked: list[float] = field(default_factory=list)
    warm_grant: list[float] = field(default_factory=list)
    warm_copy: list[float] = field(default_factory=list)
    warm_check: list[float] = field(default_factory=list)
    warm_to_pool: list[float] = field(default_factory=list)
    warm_row: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    from_disk: list[float] = field(default_factory=list)


async def load(store: Store, source: Path, figures: Figures) -> str:
    """One cold load, watched."""
    stages: dict[int, float] = {}
    watch = store.catalog.Watch(adapters_pb2.WatchAdaptersRequest(name="bench"))

    async def follow() -> None:
        async for event in watch:
            if event.HasField("progress"):
                stages[event.progress.stage] = time.perf_counter()

    follower = asyncio.ensure_future(follow())
    await asyncio.sleep(0.1)  # the stream is open by then
    began = time.perf_counter()
    request = adapters_pb2.LoadAdapterRequest(name="bench", source=str(source))
    reply = await store.catalog.Load(request, timeout=300)
    figures.to_reply.append(1e3 * (time.perf_counter() - began))
    follower.cancel()
    for stage, series in (
        (adapters_pb2.LOAD_STAGE_COPY, figures.copied),
        (adapters_pb2.LOAD_STAGE_VALIDATE, figures.checked),
        (adapters_pb2.LOAD_STAGE_PUBLISH, figures.to_lease),
    ):
        series.append(1e3 * (stages[stage] - began))
    return reply.adapter.digest


async def measure(
    shape: str, rounds: int, folder: Path, device: str | None
) -> tuple[Figures, dict[str, float]]:
    slices, figures = slices_of(shape), Figures()
    source = folder / "sources" / "adapter"
    size = write_adapter(source, shape, slices)
    half = None
    if device is not None:
        from bench.adapter_pool import ExecutorHalf

        half = ExecutorHalf(shape, device, size + (64 << 20))
    layout = layout_of(slices) if half is None else half.layout
    store = Store(folder, arena_bytes=2 * size + (64 << 20))
    await store.start(layout)
    digest, manifest_bytes = "", 0
    scratch = np.empty(size + (1 << 20), np.uint8)
    scratch[:] = 0
    registering = half.register(store.arena) if half is not None else 0.0
    try:
        for number in range(rounds + 1):
            change_adapter(source, number)
            digest = await load(store, source, figures)
            began = time.perf_counter()
            grant = await store.acquire(number, digest)
            figures.warm_grant.append(1e3 * (time.perf_counter() - began))
            manifest_bytes, total = grant.manifest.ByteSize(), grant.manifest.total_bytes
            scratch[:total] = store.arena[grant.pack_offset : grant.pack_offset + total]
            figures.warm_copy.append(1e3 * (time.perf_counter() - began))
            if half is not None:
                pack = store.arena[grant.pack_offset : grant.pack_offset + total]
                parts = half.bring(grant.manifest, pack)
                for series, part in zip(
                    (figures.warm_check, figures.warm_to_pool, figures.warm_row), parts, strict=True
                ):
                    series.append(part)
                figures.resident.append(figures.warm_grant[-1] + sum(parts))
            await store.release(number)
        if half is not None:
            half.release()
        for number in range(2):
            await store.stop()
            store.drop_memory()
            await store.start(layout)
            began = time.perf_counter()
            await store.acquire(number, digest)
            figures.from_disk.append(1e3 * (time.perf_counter() - began))
    finally:
        await store.stop()
        shutil.rmtree(store.arena_folder)
    for series in asdict(figures):
        if series != "from_disk":  # the first round starts threads and imports
            setattr(figures, series, getattr(figures, series)[1:])
    tensors = len(tensors_of(shape, slices))
    return figures, {
        "bytes": size,
        "tensors": tensors,
        "slices": len(slices),
        "manifest_bytes": manifest_bytes,
        "registering_ms": registering,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=["qwen3-8b", "qwen3-30b-a3b", STACKED], default="qwen3-8b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="of the executor's pool")
    parser.add_argument("--folder", type=Path, help="on the file system to measure")
    parser.add_argument("--out", type=Path, help="add a row to this file")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lorikeet-bench-", dir=options.folder))
    try:
        figures, facts = asyncio.run(measure(options.shape, options.rounds, folder, options.device))
    finally:
        shutil.rmtree(folder)
    print(f"{options.shape}: {facts}, {os.cpu_count()} cores, {platform.platform()}")
    print(f"{'ms':>12} {'median':>9} {'best':>9} {'worst':>9}")
    for name, series in asdict(figures).items():
        if series:
            print(f"{name:>12} {np.median(series):9.1f} {min(series):9.1f} {max(series):9.1f}")
    if options.out:
        row = {"shape": options.shape, "cores": os.cpu_count(), "platform": platform.platform()}
        rows = json.loads(options.out.read_text()) if options.out.exists() else []
        options.out.write_text(json.dumps([*rows, row | facts | asdict(figures)], indent=1) + "\n")


if __name__ == "__main__":
    main()
