"""Speed of the serving path without a model: clients, a frontend and an executor that computes nothing.

    python -m bench.serving_path                          # with the real executor and its arithmetic runner
    python -m bench.serving_path --executor scripted      # with the bare one of the frontend's tests

Three kinds of processes on loopback, as in production. Reported:

* paced: each step of the executor takes a fixed time, and the frontend must send one message per token. The
  fastest run in which at least 99 % of the messages carry a single token counts.
* coalesced: the executor makes steps as fast as its stream takes them; a frontend that is behind puts several
  tokens into one message.
* first token: from Generate to the first response, one stream at a time.
* cancel: from the client's cancel to the abort that the executor sees (wall clock of one machine).

Paced rates are those of the time in which all streams run; the coalesced one is from the first request to the
last token. CPU time is that of the processes, so that figures from a busy machine can be judged.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop

from bench.serving_processes import service
from lorikeet.v1 import generation_pb2, generation_pb2_grpc
from rpc.channel import open_channel
from rpc.tuning import tune_process

PROMPT = "hello world, this is a small text"
SINGLE_SHARE = 0.99
WARM_TOKENS = 50


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run of many streams measured."""

    tokens: int
    messages: int
    single: int
    seconds: float
    cpu_seconds: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def single_share(self) -> float:
        return self.single / self.messages

    def describe(self) -> str:
        cpu = ", ".join(
            f"{name} {seconds / self.tokens * 1e6:.1f}" for name, seconds in self.cpu_seconds.items()
        )
        return (
            f"{self.tokens_per_second:9,.0f} tokens/s  {self.messages / self.seconds:9,.0f} messages/s  "
            f"{self.single_share:6.1%} with one token  CPU us/token: {cpu}"
        )


def _request(max_tokens: int) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(
        text=PROMPT,
        sampling=generation_pb2.SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True),
    )


@contextlib.asynccontextmanager
async def _client(address: str) -> AsyncIterator[generation_pb2_grpc.GenerationServiceStub]:
    channel = open_channel(address)
    try:
        yield generation_pb2_grpc.GenerationServiceStub(channel)
    finally:
        await channel.close()


class Window:
    """Counts what arrives between `begin` and `end`."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        self._processes = processes
        self._start = self._end = 0.0
        self._before: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self.open = False
        self.tokens = self.messages = self.single = 0

    def begin(self) -> None:
        self._before = self._cpu_seconds()
        self._start = time.perf_counter()
        self.open = True

    def end(self) -> None:
        if self.open:
            self.open = False
            self._end = time.perf_counter()
            self._spent = {
                name: seconds - self._before[name] for name, seconds in self._cpu_seconds().items()
            }

    def _cpu_seconds(self) -> dict[str, float]:
        return {name: sum(process.cpu_times()[:2]) for name, process in self._processes.items()}

    def result(self) -> Run:
        return Run(
            tokens=self.tokens,
            messages=self.messages,
            single=self.single,
            seconds=self._end - self._start,
            cpu_seconds=self._spent,
        )


async def _streams(
    address: str, processes: dict[str, subprocess.Popen[str]], *, streams: int, tokens: int, steady: bool
) -> Run:
    """Runs many streams at once; `steady` counts only while all of them run, past their first tokens."""
    watched = {name: psutil.Process(process.pid) for name, process in processes.items()}
    window = Window(watched | {"client": psutil.Process()})
    cold = streams

    async def one(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
        nonlocal cold
        count, warm = 0, False
        async for response in stub.Generate(_request(tokens)):
            received = len(response.token_ids)
            count += received
            if window.open:
                window.tokens += received
                window.messages += 1
                window.single += received == 1
            elif not warm and count >= WARM_TOKENS:
                warm = True
                cold -= 1
                if not cold:
                    window.begin()
        if steady:
            window.end()
        assert count == tokens, (count, tokens)

    async with _client(address) as stub:
        # The client shares the cores with what it measures: let it do no more than it must.
        tune_process()
        if not steady:
            window.begin()
        await asyncio.gather(*(one(stub) for _ in range(streams)))
        window.end()
    return window.result()


async def _first_tokens(address: str, count: int) -> list[float]:
    """Milliseconds from Generate to the first response, one stream at a time."""
    times: list[float] = []
    async with _client(address) as stub:
        for _ in range(count):
            start = time.perf_counter()
            call = stub.Generate(_request(2))
            assert isinstance(await call.read(), generation_pb2.GenerateResponse)
            times.append((time.perf_counter() - start) * 1e3)
            while await call.read() is not grpc.aio.EOF:
                pass
    return times[5:]


async def _cancels(address: str, executor: subprocess.Popen[str], count: int) -> list[float]:
    """Milliseconds from a client's cancel to the abort at the executor, one stream at a time."""
    times: list[float] = []
    loop = asyncio.get_running_loop()
    assert executor.stdout is not None
    async with _client(address) as stub:
        for _ in range(count):
            call = stub.Generate(_request(2000))
            await call.read()
            start = time.time_ns()
            call.cancel()
            line = await loop.run_in_executor(None, executor.stdout.readline)
            times.append((int(line.split()[1]) - start) / 1e6)
    return times


# The command.


def _spread(times: list[float]) -> str:
    ordered = sorted(times)
    return f"median {statistics.median(ordered):.2f} ms, p95 {ordered[int(len(ordered) * 0.95)]:.2f} ms"


def _measure_streams(
    arguments: argparse.Namespace, folder: Path, *, step_seconds: float, steady: bool
) -> Run:
    streams = arguments.streams
    with service(arguments.executor, folder, step_seconds=step_seconds, streams=streams) as (
        address,
        processes,
    ):
        return uvloop.run(
            _streams(address, processes, streams=streams, tokens=arguments.tokens, steady=steady)
        )


def _measure_paced(arguments: argparse.Namespace, folder: Path) -> Run | None:
    """The fastest run in which the frontend sent one message per token."""
    best: Run | None = None
    for rate in arguments.rates:
        step_seconds = arguments.streams / rate
        run = _measure_streams(arguments, folder, step_seconds=step_seconds, steady=True)
        print(f"  paced for {rate:6,} tokens/s: {run.describe()}", flush=True)
        if run.single_share < SINGLE_SHARE:
            continue
        if best is None or run.tokens_per_second > best.tokens_per_second:
            best = run
    return best


def _measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    kind = arguments.executor
    print(f"{kind} executor, {arguments.streams} streams of {arguments.tokens} tokens", flush=True)
    best = _measure_paced(arguments, folder)
    coalesced = _measure_streams(arguments, folder, step_seconds=0.0, steady=False)
    print(f"  coalesced:                 {coalesced.describe()}", flush=True)
    with service(kind, folder, step_seconds=0.0, streams=1) as (address, _):
        first = uvloop.run(_first_tokens(address, 105))
    print(f"  first token: {_spread(first)}", flush=True)
    # Only the scripted executor tells when it hears of an abort.
    with service("scripted", folder, step_seconds=0.001, streams=1) as (address, processes):
        cancel = uvloop.run(_cancels(address, processes["executor"], 50))
    print(f"  cancel to abort: {_spread(cancel)}", flush=True)
    return {
        "executor": kind,
        "streams": arguments.streams,
        "one_message_per_token": best and round(best.tokens_per_second),
        "coalesced": round(coalesced.tokens_per_second),
        "first_token_ms": round(statistics.median(first), 2),
        "cancel_to_abort_ms": round(statistics.median(cancel), 2),
        "load_average": round(os.getloadavg()[0], 1),
        "grpcio": grpc.__version__,
        "python": sys.version.split()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executor", choices=["real", "scripted"], default="real")
    parser.add_argument("--model-dir", type=Path, default=Path("demo/qwen3-tiny"))
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=1000, help="tokens a stream")
    parser.add_argument("--rates", type=int, nargs="*", default=[12_000, 16_000, 18_000, 20_000, 24_000])
    parser.add_argument("--out", type=Path, help="append a row to this file")
    arguments = parser.parse_args()
    row = _measure(arguments, arguments.model_dir)
    print(json.dumps(row))
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
