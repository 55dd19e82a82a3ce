"""A real executor inside the test: arithmetic runner, real engine thread, real gRPC over a Unix socket."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from executor.app import Executor
from executor.base.build import build_base
from executor.config import ExecutorConfig
from executor.control.plan import StepPlan, StepResult
from executor.control.runner import Runner
from lorikeet.v1 import executor_pb2 as pb
from lorikeet.v1 import executor_pb2_grpc
from rpc.channel import open_channel
from rpc.digests import file_digest
from tests.support.waiting import WAIT_SECONDS

VOCAB_SIZE = 128
EOS = 2
CONTEXT = 2048

_CONFIG = {
    "model_type": "qwen3",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "eos_token_id": EOS,
}


def write_model(folder: Path) -> Path:
    """A model folder with all that an executor reads when it computes nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@dataclass
class Answer:
    """What has come back for one request."""

    token_ids: list[int] = field(default_factory=list)
    finish: int = 0
    admitted: pb.Admitted | None = None
    failed: pb.Failed | None = None


class Connection:
    """The frontend's end of one stream."""

    def __init__(self, stub: executor_pb2_grpc.ExecutorServiceStub) -> None:
        self.call: Any = stub.Connect()
        self.answers: dict[int, Answer] = {}
        self.steps = 0

    async def hello(self, model_dir: Path, **changes: Any) -> pb.EngineHello:
        fields = {
            "protocol_version": 1,
            "incarnation": "f1",
            "tokenizer_digest": file_digest(model_dir / "tokenizer.json"),
            **changes,
        }
        await self.call.write(pb.ConnectRequest(hello=pb.ClientHello(**fields)))
        response = await self.call.read()
        assert response is not grpc.aio.EOF, "the stream ended instead of a Hello"
        return response.hello

    async def error_of_hello(self, model_dir: Path) -> grpc.aio.AioRpcError:
        try:
            await self.hello(model_dir)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError("the executor accepted the Hello")

    async def send(self, *submits: pb.Submit, **commands: Any) -> None:
        message = pb.ClientCommands(submits=submits, **commands)
        await self.call.write(pb.ConnectRequest(commands=message))

    async def receive(self) -> pb.EngineStep:
        """The next step, sorted into `answers`. Raises AioRpcError when the stream is cut."""
        response = await asyncio.wait_for(self.call.read(), WAIT_SECONDS)
        if response is grpc.aio.EOF:
            raise EOFError
        step = response.step
        self.steps += 1
        for row, request in enumerate(step.requests):
            answer = self.answers.setdefault(request, Answer())
            answer.token_ids += step.token_ids[step.token_splits[row] : step.token_splits[row + 1]]
            answer.finish = step.finishes[row]
        for admitted in step.admitted:
            self.answers.setdefault(admitted.request, Answer()).admitted = admitted
        for failed in step.failed:
            self.answers.setdefault(failed.request, Answer()).failed = failed
        return step

    async def until_over(self, *requests: int) -> None:
        while not all(
            (answer := self.answers.get(request)) is not None and (answer.finish or answer.failed)
            for request in requests
        ):
            await self.receive()

    async def error(self) -> grpc.aio.AioRpcError:
        """What the stream ends with; reads and drops what comes before."""
        try:
            while await asyncio.wait_for(self.call.read(), WAIT_SECONDS) is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError(f"the stream ended with {await self.call.code()}")


def submit(
    request: int, prompt: list[int] | None = None, *, max_tokens: int = 8, **changes: Any
) -> pb.Submit:
    sampling = {"max_tokens": max_tokens, "top_p": 1.0, "repetition_penalty": 1.0, "ignore_eos": True}
    sampling |= changes.pop("sampling", {})
    return pb.Submit(
        request=request,
        prompt_ids=prompt or [5, 6, 7],
        sampling=pb.EngineSampling(**sampling),
        **changes,
    )


class Gate:
    """A runner whose steps end one by one, as the test permits; the engine waits in between."""

    def __init__(self, inner: Runner[Any]) -> None:
        self._inner = inner
        self._permits = threading.Semaphore(0)
        self._closed = True
        self.begun = 0
        """Steps that were launched and wait for their permit, or have had it."""

    def launch(self, plan: StepPlan) -> Any:
        return self._inner.launch(plan)

    def collect(self, pending: Any) -> StepResult:
        self.begun += 1
        if self._closed:
            self._permits.acquire()
        return self._inner.collect(pending)

    def permit(self, steps: int = 1) -> None:
        self._permits.release(steps)

    def open(self) -> None:
        """No step waits any more."""
        self._closed = False
        self._permits.release()


@dataclass
class Running:
    """An executor that serves, and a way to reach it."""

    executor: Executor
    address: str
    model_dir: Path
    stub: executor_pb2_grpc.ExecutorServiceStub
    gate: Gate

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        connection = Connection(self.stub)
        await connection.hello(self.model_dir)
        try:
            yield connection
        finally:
            connection.call.cancel()

    async def statistics(self, adapters: int = 0) -> pb.ExecutorStatistics:
        return await self.stub.GetStatistics(pb.GetExecutorStatisticsRequest(adapters=adapters))

    async def until(self, predicate: Any) -> pb.ExecutorStatistics:
        """Asks for statistics until they satisfy the predicate."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not predicate(statistics := await self.statistics()):  # noqa: ASYNC110 - in another thread
                await asyncio.sleep(0.002)
        return statistics

    async def until_empty(self) -> pb.ExecutorStatistics:
        return await self.until(is_empty)


def is_empty(statistics: pb.ExecutorStatistics) -> bool:
    """Nothing is held for any request."""
    return not (
        statistics.requests_running
        or statistics.requests_waiting
        or statistics.pages_held
        or statistics.adapters_arriving
        or statistics.leases
        or statistics.commands_queued
        or statistics.outbox_bytes
    )


@asynccontextmanager
async def executor_at(
    folder: Path, *, gated: bool = False, runner: Runner[Any] | None = None, **settings: Any
) -> AsyncIterator[Running]:
    model_dir = write_model(folder / "model")
    config = ExecutorConfig(
        **{
            "model_dir": model_dir,
            "listen": f"unix:{folder}/executor.sock",
            "runner": "arithmetic",
            "drain_seconds": 5.0,
            "kv_pages": 256,
            **settings,
        }
    )
    base = build_base(config, lambda done, total: None)
    gate = Gate(runner or base.runner)
    if not gated:
        gate.open()
    executor = Executor(config, replace(base, runner=gate))
    async with executor.running() as address, open_channel(address) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        try:
            yield Running(executor, address, model_dir, stub, gate)
        finally:
            gate.open()
