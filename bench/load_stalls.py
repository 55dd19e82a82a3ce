"""What running streams feel while adapters load: inter-token times with and without cold loads beside them.

    python -m bench.load_stalls                            # demo model, CPU
    python -m bench.load_stalls --device cuda --dtype bfloat16 --shape qwen3-8b --ranks 16 --adapters 16

Store, executor and frontend are three processes, this client of the streams a fourth, that of the loads a
fifth (`bench.load_loop`). Streams decode without end. Windows of
several kinds take turns, so that whatever else the machine does meets all of them:

* quiet: nothing else;
* rank N: adapters that the store does not know are loaded through the admin API and brought into the
  executor's pool, one after another without a pause, and unloaded again some time later;
* control: no loads, but a niced process of its own that burns, in bursts as often as loads came, the
  CPU time that the store took for them: what any such work costs on this machine.

An inter-token time is that between two messages of a stream, each of which brings one token or more; a stream
that is silent for a whole window counts there with the time since its last.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench import seeded_adapters
from bench.engine import SHAPES
from bench.grpc_decode import write_adapters, write_model
from lorikeet.v1 import generation_pb2
from tests.support import service_stack
from tests.support.service_stack import DEMO, Stack, stack_at

MODEL = DEMO / "qwen3-tiny"
PROMPT = tuple(range(40, 72))
_TICKS = os.sysconf("SC_CLK_TCK")
# Seconds at the start of a window that do not count.
_SETTLE = 0.3
_BURN = """
import os, sys, time
os.nice(10)
busy, period = float(sys.argv[1]), float(sys.argv[2])
data = bytes(1 << 16)
import hashlib
while True:
    began, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < busy:
        hashlib.sha256(data).digest()
    time.sleep(max(0.0, period - (time.monotonic() - began)))
"""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Milliseconds between tokens, loads, and CPU seconds of each process; two are clients."""

    kind: str
    p50_ms: float
    p99_ms: float
    longest_ms: float
    gaps: int
    loads: int
    load_ms: float
    store_cpu_seconds: float
    executor_cpu_seconds: float
    frontend_cpu_seconds: float
    streams_cpu_seconds: float
    loads_cpu_seconds: float


@dataclass
class Streams:
    """Clients that are always being answered, and what they see."""

    stack: Stack
    count: int
    tokens: int
    gaps: list[float] = field(default_factory=list)
    # When each stream that has begun last brought a token.
    heard: dict[int, float] = field(default_factory=dict)

    def since(self, began: float) -> list[float]:
        """Seconds between tokens that came after `began`; of a stream without any, since its last token."""
        now = time.perf_counter()
        return self.gaps + [now - last for last in self.heard.values() if last < began]

    async def run(self, number: int) -> None:
        request = generation_pb2.GenerateRequest(
            tokens=generation_pb2.TokenIds(ids=PROMPT),
            adapter=("", "running")[number % 2],
            sampling=generation_pb2.SamplingParams(
                temperature=0,
                # The first ends early, so that they do not begin anew together.
                max_tokens=self.tokens * (number + 1) // self.count,
                ignore_eos=True,
            ),
        )
        while True:
            last = 0.0
            async for response in self.stack.generation.Generate(request, timeout=600):
                if not response.token_ids:
                    continue
                now = time.perf_counter()
                if last:
                    self.gaps.append(now - last)
                last = self.heard[number] = now
            request.sampling.max_tokens = self.tokens


class Loading:
    """A process that loads adapters of one size after another: see `bench.load_loop`."""

    def __init__(self, address: str) -> None:
        command = [sys.executable, "-m", "bench.load_loop", address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, folder: Path) -> None:
        self._say(f"{folder}\n")

    async def end(self) -> list[float]:
        """Ends the loop, has all unloaded, and tells the seconds of each load."""
        self._say("\n")
        assert self._process.stdout is not None
        return json.loads(await asyncio.to_thread(self._process.stdout.readline))

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()


class Bench:
    """One set of services, its streams, and windows over them."""

    def __init__(
        self, stack: Stack, streams: Streams, loading: Loading, folders: dict[str, Path], seconds: float
    ) -> None:
        self._stack = stack
        self._streams = streams
        self._loading = loading
        self._folders = folders
        self._seconds = seconds
        self.windows: list[Window] = []

    async def run(self, rounds: int) -> list[Window]:
        tasks = [asyncio.create_task(self._streams.run(n)) for n in range(self._streams.count)]
        try:
            async with asyncio.timeout(120):
                while len(self._streams.heard) < self._streams.count:  # noqa: ASYNC110 - other processes
                    await asyncio.sleep(0.05)
            for kind in ("quiet", *self._folders):  # what starts only once
                await self._window(kind)
            for number in range(rounds):
                kinds = ["quiet", *self._folders, "control"]
                # Every other round backwards, so that no kind always follows the same one.
                for kind in kinds if number % 2 == 0 else reversed(kinds):
                    window = await self._window(kind)
                    self.windows.append(window)
                    print(f"{kind:10} p50 {window.p50_ms:6.2f} p99 {window.p99_ms:7.2f} ms", flush=True)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [error for error in results if not isinstance(error, asyncio.CancelledError)]
        assert not failed, failed
        return self.windows

    async def _window(self, kind: str) -> Window:
        if kind in self._folders:
            self._loading.begin(self._folders[kind])
        burning = self._burn() if kind == "control" else None
        try:
            await asyncio.sleep(_SETTLE)
            self._streams.gaps.clear()
            began, before = time.perf_counter(), self._cpu()
            await asyncio.sleep(self._seconds)
            gaps = 1e3 * np.array(self._streams.since(began))
            after = self._cpu()
        finally:
            if burning is not None:
                burning.kill()
                burning.wait()
        took = await self._end_loads() if kind in self._folders else []
        p50, p99 = np.percentile(gaps, [50, 99])
        return Window(
            kind=kind,
            p50_ms=float(p50),
            p99_ms=float(p99),
            longest_ms=float(gaps.max()),
            gaps=len(gaps),
            loads=round(len(took) * self._seconds / (self._seconds + _SETTLE)),
            load_ms=1e3 * statistics.median(took) if took else 0.0,
            **{f"{name}_cpu_seconds": after[name] - before[name] for name in after},
        )

    async def _end_loads(self) -> list[float]:
        took = await self._loading.end()
        while (await self._stack.pack_statistics()).packs_cold > 1:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
        return took

    def _burn(self) -> "subprocess.Popen[bytes]":
        first = next(iter(self._folders))
        known = [window for window in self.windows if window.kind == first]
        loads = max(1.0, statistics.mean(window.loads for window in known)) if known else 20.0
        cpu = statistics.mean(window.store_cpu_seconds for window in known) if known else 0.5
        return subprocess.Popen([sys.executable, "-c", _BURN, str(cpu / loads), str(self._seconds / loads)])

    def _cpu(self) -> dict[str, float]:
        stack = self._stack
        processes = {"store": stack.store, "executor": stack.executor, "frontend": stack.frontend}
        pids = {name: service.pid for name, service in processes.items()}
        pids |= {"streams": os.getpid(), "loads": self._loading.pid}
        return {name: cpu_seconds(pid) for name, pid in pids.items()}


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def make_adapters(folder: Path, model_dir: Path, ranks: list[int], count: int) -> None:
    """Writes `count` random adapters of each rank below folder/rank-N, and one that streams use."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir))
    places = {
        name: seeded_adapters.Place(inputs=linear.in_features, outputs=linear.out_features, std=0.02)
        for name, linear in seeded_adapters.linears(model).items()
    }
    for rank in ranks:
        for number in range(count):
            made = seeded_adapters.weights(places, 1000 * rank + number, rank)
            seeded_adapters.write(folder / f"rank-{rank}" / f"r{rank}-{number}", made, rank)
    seeded_adapters.write(folder / "running", seeded_adapters.weights(places, 7, 8), 8)


def make_model(options: argparse.Namespace, folder: Path) -> Path:
    """The model's folder; of a shape, one without weights. Its adapters lie in folder/adapters afterwards."""
    if not options.shape:
        make_adapters(folder / "adapters", options.model_dir, options.ranks, options.adapters)
        return options.model_dir
    shape = SHAPES[options.shape]
    for rank in options.ranks:
        write_adapters(folder / "adapters" / f"rank-{rank}", shape, count=options.adapters, rank=rank)
    write_adapters(folder / "running", shape, count=1, rank=8)
    (folder / "running" / "0").rename(folder / "adapters" / "running")
    return write_model(folder / "model", shape)


async def measure(options: argparse.Namespace, folder: Path) -> list[Window]:
    model_dir = make_model(options, folder)
    (folder / "services").mkdir()
    load_format = "dummy" if options.shape else "safetensors"
    flags = [f"--device={options.device}", f"--dtype={options.dtype}", f"--load-format={load_format}"]
    flags += [f"--max-lora-rank={max(64, *options.ranks)}", f"--adapter-pool-bytes={options.pool_bytes}"]
    async with stack_at(
        folder / "services",
        model_dir=model_dir,
        roots=[folder / "adapters"],
        executor_flags=flags,
        store_flags=[f"--arena-bytes={options.arena_bytes}"],
    ) as stack:
        await stack.load("running", folder / "adapters" / "running")
        streams = Streams(stack, options.streams, options.tokens)
        folders = {f"rank {rank}": folder / "adapters" / f"rank-{rank}" for rank in options.ranks}
        loading = Loading(stack.frontend.address)
        try:
            return await Bench(stack, streams, loading, folders, options.seconds).run(options.rounds)
        finally:
            loading.close()


def summary(windows: list[Window]) -> dict[str, dict[str, float]]:
    """Medians over the windows of each kind, and what they are of the quiet ones'."""
    kinds: dict[str, list[Window]] = defaultdict(list)
    for window in windows:
        kinds[window.kind].append(window)
    rows: dict[str, dict[str, float]] = {}
    for kind, of_kind in kinds.items():
        figures = [{k: v for k, v in asdict(window).items() if k != "kind"} for window in of_kind]
        rows[kind] = {key: statistics.median(row[key] for row in figures) for key in figures[0]}
    for row in rows.values():
        row["p50_ratio"] = row["p50_ms"] / rows["quiet"]["p50_ms"]
        row["p99_ratio"] = row["p99_ms"] / rows["quiet"]["p99_ms"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2000, help="of each answer")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--adapters", type=int, default=100, help="of each rank")
    parser.add_argument("--model-dir", type=Path, default=MODEL)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--shape", choices=SHAPES, help="of a model without weights, in place of model-dir")
    parser.add_argument("--arena-bytes", type=int, default=64 << 20)
    parser.add_argument("--pool-bytes", type=int, default=32 << 20)
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    parser.add_argument("--start-seconds", type=float, default=60.0, help="patience with the start")
    options = parser.parse_args()
    service_stack.START_SECONDS = options.start_seconds
    with tempfile.TemporaryDirectory(prefix="lorikeet-stalls-") as folder:
        windows = asyncio.run(measure(options, Path(folder)))
    rows = summary(windows)
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, {options.streams} streams")
    names = ("p50_ms", "p99_ms", "longest_ms", "p50_ratio", "p99_ratio", "loads", "load_ms")
    names += tuple(f"{name}_cpu_seconds" for name in ("store", "executor", "frontend", "streams", "loads"))
    print(f"{'':10}" + "".join(f"{name.removesuffix('_cpu_seconds'):>11}" for name in names))
    for kind, row in rows.items():
        print(f"{kind:10}" + "".join(f"{row[name]:11.2f}" for name in names))
    if options.out:
        if options.model_dir.resolve().is_relative_to(DEMO.parent):
            options.model_dir = options.model_dir.resolve().relative_to(DEMO.parent)
        settings = {key: str(value) for key, value in vars(options).items() if key != "out"}
        machine = {"cores": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()}
        record = {"settings": settings, "machine": machine, "summary": rows}
        options.out.write_text(
            json.dumps({**record, "windows": [asdict(window) for window in windows]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
