"""Store, executor and frontend as three real processes on Unix sockets, to be killed and started again."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.serving.places import reserve
from lorikeet.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    executor_pb2,
    executor_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
)
from rpc.channel import open_channel
from tests.support.answers import ANSWER_SECONDS, Answer, Begun, add
from tests.support.waiting import WAIT_SECONDS

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
START_SECONDS = 120.0
EMPTY = ("requests_running", "requests_waiting", "pages_held", "adapters_arriving", "leases")


class Service:
    """One process of Lorikeet, at most one life at a time; its log is in the test's folder."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self.address = f"unix:{folder}/{name}.sock"
        self.log = folder / f"{name}.log"
        self._command = [
            sys.executable,
            "-P",
            "-m",
            "cli",
            name,
            "--supervised",
            "--listen",
            self.address,
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            # Its stdin is our pipe: it stops when the test's process goes, however it goes.
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "LORIKEET_LOG_LEVEL": "INFO"},
            )

    async def serving(self) -> None:
        """Waits until health says SERVING; fails with the end of the log when the process ends before."""
        deadline = time.monotonic() + START_SECONDS
        async with open_channel(self.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < deadline:
                assert self._process is not None
                if self._process.poll() is not None:
                    break
                with suppress(grpc.RpcError):
                    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=2)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                await asyncio.sleep(0.02)
        raise AssertionError(f"{self.name} does not serve:\n{self.tail()}")

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(WAIT_SECONDS)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL when that is not enough. Returns the exit code."""
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(WAIT_SECONDS)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It stands still within the block."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tail(self) -> str:
        return "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-30:])


@dataclass
class Stack:
    """Three services and stubs for their APIs; `metrics` is where the frontend's are."""

    store: Service
    executor: Service
    frontend: Service
    metrics: str
    generation: generation_pb2_grpc.GenerationServiceStub
    adapters: adapters_pb2_grpc.AdapterServiceStub
    executor_stub: executor_pb2_grpc.ExecutorServiceStub
    pack_stub: store_pb2_grpc.PackServiceStub

    async def load(self, name: str, source: Path) -> adapters_pb2.Adapter:
        """Loads an adapter, patiently while services come up."""
        request = adapters_pb2.LoadAdapterRequest(name=name, source=str(source))
        response = await _patiently(lambda: self.adapters.LoadAdapter(request, timeout=WAIT_SECONDS))
        return response.adapter

    async def list_adapters(self) -> adapters_pb2.ListAdaptersResponse:
        """The first page of the catalog, patiently while services come up."""
        request = adapters_pb2.ListAdaptersRequest()
        return await _patiently(lambda: self.adapters.ListAdapters(request, timeout=WAIT_SECONDS))

    async def roll_back(self, name: str, **fields: str) -> adapters_pb2.Adapter:
        """Rolls a name back, patiently while services come up."""
        request = adapters_pb2.RollbackAdapterRequest(name=name, **fields)
        response = await _patiently(lambda: self.adapters.RollbackAdapter(request, timeout=WAIT_SECONDS))
        return response.adapter

    async def answer(self, request: generation_pb2.GenerateRequest) -> Answer:
        answer = Answer()
        async for response in self.generation.Generate(request, timeout=ANSWER_SECONDS):
            add(answer, response)
        return answer

    def begin(self, request: generation_pb2.GenerateRequest) -> Begun:
        """Asks, and lets the test go on."""
        return Begun(self.generation.Generate(request, timeout=ANSWER_SECONDS))

    async def answer_together(self, requests: Sequence[generation_pb2.GenerateRequest]) -> list[Answer]:
        """The executor gets them in this order and all before it makes a step for the first."""
        answers: list[asyncio.Task[Answer]] = []
        before = await self._flights()
        with self.executor.paused():
            async with asyncio.timeout(WAIT_SECONDS):
                for request in requests:
                    answers.append(asyncio.create_task(self.answer(request)))
                    while await self._flights() < before + len(answers):  # noqa: ASYNC110 - another process
                        await asyncio.sleep(0.002)
        return await asyncio.gather(*answers)

    async def _flights(self) -> int:
        """Requests that the frontend has on their way."""
        text = await asyncio.to_thread(scrape, self.metrics)
        found = re.search(r'^lorikeet_frontend_held\{what="flights"\} (\S+)$', text, flags=re.MULTILINE)
        return int(float(found[1])) if found else -1

    async def statistics(self) -> executor_pb2.ExecutorStatistics:
        return await self.executor_stub.GetStatistics(
            executor_pb2.GetExecutorStatisticsRequest(), wait_for_ready=True, timeout=WAIT_SECONDS
        )

    async def pack_statistics(self) -> store_pb2.PackStatistics:
        return await self.pack_stub.GetStatistics(
            store_pb2.GetPackStatisticsRequest(), wait_for_ready=True, timeout=WAIT_SECONDS
        )

    async def until(self, predicate: Any) -> executor_pb2.ExecutorStatistics:
        """Asks the executor for its statistics until they satisfy the predicate."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not predicate(statistics := await self.statistics()):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.005)
        return statistics

    async def until_unleased(self) -> store_pb2.PackStatistics:
        """Waits until the store has heard of every lease's end, which is told it a little later."""
        async with asyncio.timeout(WAIT_SECONDS):
            while (statistics := await self.pack_statistics()).leases:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.005)
        return statistics

    async def until_empty(self) -> executor_pb2.ExecutorStatistics:
        """Waits until nothing is held for any request."""
        return await self.until(lambda statistics: not any(getattr(statistics, name) for name in EMPTY))


def scrape(address: str) -> str:
    """Metrics as text."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=WAIT_SECONDS) as response:
        return response.read().decode()


@asynccontextmanager
async def stack_at(
    folder: Path,
    *,
    model_dir: Path = DEMO / "qwen3-tiny",
    roots: Sequence[Path] = (DEMO / "adapters",),
    executor_flags: Sequence[str] = (),
    frontend_flags: Sequence[str] = (),
    store_flags: Sequence[str] = (),
) -> AsyncIterator[Stack]:
    """All three, serving; stopped at the end, whatever happened, and none may have died by itself."""
    model, arena = ["--model-dir", str(model_dir)], ["--arena-dir", f"{folder}/arena"]
    places = ["--data-dir", f"{folder}/data", *arena, "--arena-bytes", "16777216"]
    with contextlib.ExitStack() as held:
        metrics = reserve("127.0.0.1:0", held)
        store = Service("store", [*places, *_flags("--roots", roots), *store_flags], folder)
        to_store = ["--store", store.address]
        executor = Service("executor", [*model, *to_store, *arena, *executor_flags], folder)
        to_both = ["--executor", executor.address, *to_store]
        to_frontend = [*model, *to_both, "--metrics-listen", metrics, *frontend_flags]
        frontend = Service("frontend", to_frontend, folder)
        services = (store, executor, frontend)
        try:
            for service in services:
                service.start()
            for service in services:
                await service.serving()
            async with (
                open_channel(frontend.address) as public,
                open_channel(executor.address) as inner,
                open_channel(store.address) as packs,
            ):
                yield Stack(
                    store=store,
                    executor=executor,
                    frontend=frontend,
                    metrics=metrics,
                    generation=generation_pb2_grpc.GenerationServiceStub(public),
                    adapters=adapters_pb2_grpc.AdapterServiceStub(public),
                    executor_stub=executor_pb2_grpc.ExecutorServiceStub(inner),
                    pack_stub=store_pb2_grpc.PackServiceStub(packs),
                )
            dead = [f"{service.name} died:\n{service.tail()}" for service in services if not service.alive]
            assert not dead, "\n".join(dead)
        finally:
            codes = [service.stop() for service in reversed(services)]
    unclean = [
        f"{service.name} ended with {code}:\n{service.tail()}"
        for service, code in zip(reversed(services), codes, strict=True)
        if code
    ]
    assert not unclean, "\n".join(unclean)


def _flags(name: str, values: Sequence[Path]) -> list[str]:
    return [part for value in values for part in (name, str(value))]


async def _patiently(call: Any) -> Any:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            settling = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
            if not settling or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(0.1)
