"""How soon pages are free again when a client goes: from its cancel to the executor holding none for it.

    python -m bench.disconnect [--count 100] [--step-seconds 0.01] [--out FILE]

Client, frontend and executor on Unix sockets, as three processes; the executor computes nothing and takes
`--step-seconds` for each step, as a device would. Two ways to go: one call is cancelled on a connection that
stays, and the connection is closed with all its calls. The executor is asked for its statistics again and
again; a figure includes one such call, and its steps are those launched between the cancel and the answer
that showed no pages: the one that was under way, the one that may end it, and none after.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import uvloop

from lorikeet.v1 import executor_pb2, executor_pb2_grpc, generation_pb2, generation_pb2_grpc
from rpc.channel import open_channel
from tests.support.service_stack import Service

DEMO_MODEL = Path(__file__).resolve().parents[1] / "demo" / "qwen3-tiny"
REQUEST = generation_pb2.GenerateRequest(
    text="hello " * 100,
    sampling=generation_pb2.SamplingParams(max_tokens=400, temperature=0, ignore_eos=True),
)


@dataclass
class Measured:
    """One entry per departure."""

    milliseconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def describe(self) -> str:
        ordered = sorted(self.milliseconds)
        return (
            f"median {statistics.median(ordered):.2f} ms, p99 {ordered[int(len(ordered) * 0.99)]:.2f} ms; "
            f"steps: median {statistics.median(self.steps):g}, at most {max(self.steps)}"
        )


class Executor:
    """Its statistics."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = executor_pb2_grpc.ExecutorServiceStub(channel)

    async def statistics(self) -> executor_pb2.ExecutorStatistics:
        return await self._stub.GetStatistics(executor_pb2.GetExecutorStatisticsRequest())

    async def until_free(self) -> executor_pb2.ExecutorStatistics:
        while (now := await self.statistics()).pages_held:
            pass
        return now


async def _begin(channel: grpc.aio.Channel, calls: int) -> list[grpc.aio.UnaryStreamCall]:
    """Calls that have each had a first response."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    begun = [stub.Generate(REQUEST) for _ in range(calls)]
    await asyncio.gather(*(call.read() for call in begun))
    return begun


async def _cancelled_calls(frontend: str, executor: Executor, count: int) -> Measured:
    measured = Measured()
    async with open_channel(frontend) as channel:
        for _ in range(count):
            (call,) = await _begin(channel, 1)
            before = (await executor.statistics()).steps
            start = time.perf_counter()
            call.cancel()
            free = await executor.until_free()
            measured.milliseconds.append((time.perf_counter() - start) * 1e3)
            measured.steps.append(free.steps - before)
    return measured


async def _closed_connections(frontend: str, executor: Executor, count: int) -> Measured:
    measured = Measured()
    for _ in range(count):
        channel = open_channel(frontend)
        await _begin(channel, 8)
        before = (await executor.statistics()).steps
        start = time.perf_counter()
        closing = asyncio.ensure_future(channel.close())
        free = await executor.until_free()
        measured.milliseconds.append((time.perf_counter() - start) * 1e3)
        measured.steps.append(free.steps - before)
        await closing
    return measured


async def _measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Measured]:
    model = ["--model-dir", str(arguments.model)]
    pace = ["--runner", "arithmetic", "--arithmetic-step-seconds", str(arguments.step_seconds)]
    executor = Service("executor", [*model, *pace], folder)
    frontend = Service("frontend", [*model, "--executor", executor.address, "--store", ""], folder)
    try:
        for service in (executor, frontend):
            service.start()
        for service in (executor, frontend):
            await service.serving()
        async with open_channel(executor.address) as channel:
            asked = Executor(channel)
            await _cancelled_calls(frontend.address, asked, 5)
            return {
                "call cancelled": await _cancelled_calls(frontend.address, asked, arguments.count),
                "connection closed": await _closed_connections(frontend.address, asked, arguments.count),
            }
    finally:
        frontend.stop()
        executor.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--step-seconds", type=float, default=0.01)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL, help="a model folder; weights are not read")
    parser.add_argument("--out", type=Path, help="append a row to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = uvloop.run(_measure(Path(name), arguments))
    row: dict[str, object] = {"step_ms": arguments.step_seconds * 1e3}
    for kind, measured in results.items():
        print(f"{kind:18} {measured.describe()}")
        row[kind] = {
            "median_ms": round(statistics.median(measured.milliseconds), 2),
            "max_steps": max(measured.steps),
        }
    row |= {
        "load_average": round(os.getloadavg()[0], 1),
        "grpcio": grpc.__version__,
        "python": sys.version.split()[0],
    }
    print(json.dumps(row))
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
