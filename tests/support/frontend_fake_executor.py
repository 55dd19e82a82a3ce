"""An executor without a model: tokens that can be computed by hand, all requests one token a step."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import grpc

from lorikeet.v1 import executor_pb2, executor_pb2_grpc

Script = Callable[[executor_pb2.Submit, int], int]
"""The token of a request at an index of its completion."""


def token_by_position(submit: executor_pb2.Submit, index: int) -> int:
    """Depends on prompt, seed and position alone, so that a resubmission must continue it; never special."""
    position = len(submit.prompt_ids) + index
    return 36 + (sum(submit.prompt_ids) + submit.sampling.seed + 7 * position) % 64


def fixed_tokens(tokens: Sequence[int]) -> Script:
    """The same tokens for every request, over and over."""
    return lambda _, index: tokens[index % len(tokens)]


def logprob_of(token_id: int) -> float:
    return -token_id / 64.0


@dataclass(eq=False)
class Running:
    """A request in the fake's table; `emitted` counts those of earlier executors."""

    submit: executor_pb2.Submit
    emitted: int
    announced: bool = False


@dataclass(eq=False)
class Session:
    """One frontend's stream."""

    hello: executor_pb2.ClientHello
    running: dict[int, Running] = field(default_factory=dict)
    failed: list[executor_pb2.Failed] = field(default_factory=list)
    work: asyncio.Event = field(default_factory=asyncio.Event)


class FakeExecutor(executor_pb2_grpc.ExecutorServiceServicer):
    """Answers every request from a script.

    Args:
        hello: what it says of itself.
        script: which token comes next.
        free_running: make steps as fast as the stream takes them; else only those that `step` asks for.
        step_seconds: time from one step of a free-running executor to the next.
        record: keep all commands, for tests to look at.

    `submits`, `finishes` and `aborts` record all commands; `changed` is notified of each message of them and
    of each step. `refuse` may turn a submission into a failure.
    """

    def __init__(
        self,
        *,
        hello: executor_pb2.EngineHello,
        script: Script = token_by_position,
        free_running: bool = True,
        step_seconds: float = 0.0,
        record: bool = True,
    ) -> None:
        self.hello = hello
        self.script = script
        self.refuse: Callable[[executor_pb2.Submit], executor_pb2.Failed | None] = lambda _: None
        self.on_abort: Callable[[], None] = lambda: None
        self.submits: list[executor_pb2.Submit] = []
        self.finishes: list[int] = []
        self.aborts: list[int] = []
        self.prefetches: list[str] = []
        self.sessions: list[Session] = []
        self.statistics = executor_pb2.ExecutorStatistics()
        self.changed = asyncio.Condition()
        self._free_running = free_running
        self._step_seconds = step_seconds
        self._record = record
        self._permits = asyncio.Semaphore(0)
        self._steps = 0

    @property
    def running(self) -> int:
        """Requests in all tables."""
        return sum(len(session.running) for session in self.sessions)

    def step(self, count: int = 1) -> None:
        """Lets an executor that is not free-running make steps."""
        for _ in range(count):
            self._permits.release()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once the condition holds, looked at after each message of commands."""
        async with self.changed:
            await self.changed.wait_for(condition)

    async def GetStatistics(  # noqa: N802
        self, request: executor_pb2.GetExecutorStatisticsRequest, context: grpc.aio.ServicerContext
    ) -> executor_pb2.ExecutorStatistics:
        return self.statistics

    async def Connect(  # noqa: N802
        self,
        request_iterator: AsyncIterator[executor_pb2.ConnectRequest],
        context: grpc.aio.ServicerContext,
    ) -> None:
        first = await anext(request_iterator)
        session = Session(hello=first.hello)
        self.sessions.append(session)
        await context.write(executor_pb2.ConnectResponse(hello=self.hello))
        reader = asyncio.create_task(self._read(session, request_iterator))
        stepper = asyncio.create_task(self._make_steps(session, context))
        try:
            await asyncio.wait([reader, stepper], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.sessions.remove(session)
            for task in (reader, stepper):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, grpc.aio.UsageError):
                    await task

    async def _read(self, session: Session, requests: AsyncIterator[executor_pb2.ConnectRequest]) -> None:
        async for request in requests:
            commands = request.commands
            for submit in commands.submits:
                if self._record:
                    self.submits.append(submit)
                failed = self.refuse(submit)
                if failed is not None:
                    session.failed.append(failed)
                    continue
                session.running[submit.request] = Running(submit, len(submit.emitted_ids))
            if self._record:
                self.prefetches.extend(commands.prefetch_digests)
            for ended, log in ((commands.finishes, self.finishes), (commands.aborts, self.aborts)):
                if self._record:
                    log.extend(ended)
                for request_id in ended:
                    session.running.pop(request_id, None)
            if commands.aborts:
                self.on_abort()
            session.work.set()
            async with self.changed:
                self.changed.notify_all()

    async def _make_steps(self, session: Session, context: grpc.aio.ServicerContext) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            while not (session.running or session.failed):
                session.work.clear()
                await session.work.wait()
            if self._free_running:
                # A step that came late does not make later ones come faster than the rate.
                due = max(due + self._step_seconds, clock())
                await asyncio.sleep(due - clock())
            else:
                await self._permits.acquire()
            step = self._compute(session)
            if step is not None:
                await context.write(executor_pb2.ConnectResponse(step=step))
                async with self.changed:
                    self.changed.notify_all()

    def _compute(self, session: Session) -> executor_pb2.EngineStep | None:
        self._steps += 1
        requests: list[int] = []
        tokens: list[int] = []
        finishes: list[int] = []
        step = executor_pb2.EngineStep(step=self._steps, failed=session.failed)
        session.failed = []
        eos = set(self.hello.eos_token_ids)
        for request, running in session.running.items():
            submit, sampling = running.submit, running.submit.sampling
            if not running.announced:
                running.announced = True
                self._announce(step, submit)
            token = self.script(submit, running.emitted)
            running.emitted += 1
            finish = executor_pb2.ENGINE_FINISH_UNSPECIFIED
            if token in sampling.stop_token_ids or (token in eos and not sampling.ignore_eos):
                finish = executor_pb2.ENGINE_FINISH_STOP
            elif running.emitted >= sampling.max_tokens:
                finish = executor_pb2.ENGINE_FINISH_LENGTH
            if sampling.HasField("logprobs"):
                self._add_alternatives(step, request, len(tokens), token, sampling.logprobs)
            requests.append(request)
            tokens.append(token)
            finishes.append(finish)
        if any(session.running[request].submit.sampling.HasField("logprobs") for request in requests):
            step.logprobs.extend(logprob_of(token) for token in tokens)
        for request, finish in zip(requests, finishes, strict=True):
            if finish:
                del session.running[request]
        step.requests.extend(requests)
        step.token_splits.extend(range(len(requests) + 1))
        step.token_ids.extend(tokens)
        step.finishes.extend(finishes)
        return step

    def _announce(self, step: executor_pb2.EngineStep, submit: executor_pb2.Submit) -> None:
        step.admitted.add(request=submit.request, cached_tokens=len(submit.prompt_ids) // 2, queued_us=5)
        if submit.sampling.HasField("prompt_logprobs"):
            top = submit.sampling.prompt_logprobs
            # In two chunks, the first without the first token, which has no probability.
            half = len(submit.prompt_ids) // 2
            for start, stop in ((1, half), (half, len(submit.prompt_ids))):
                ids = submit.prompt_ids[max(start, 1) : stop]
                step.prompt_logprobs.add(
                    request=submit.request,
                    start=max(start, 1),
                    logprobs=[logprob_of(token) for token in ids],
                    top=top,
                    top_ids=[(token + rank) % 300 for token in ids for rank in range(top)],
                    top_logprobs=[logprob_of(token) - rank for token in ids for rank in range(top)],
                )

    def _add_alternatives(
        self, step: executor_pb2.EngineStep, request: int, offset: int, token: int, count: int
    ) -> None:
        if count:
            step.top_logprobs.add(
                request=request,
                token=offset,
                ids=[(token + rank) % 300 for rank in range(count)],
                logprobs=[logprob_of(token) - rank for rank in range(count)],
            )


def engine_hello(
    *, model_type: str, tokenizer_digest: str, vocab_size: int, context_length: int = 512
) -> executor_pb2.EngineHello:
    """A Hello that fits the tiny model folders of these tests."""
    return executor_pb2.EngineHello(
        protocol_version=1,
        incarnation="fake",
        model_name="tiny",
        model_type=model_type,
        base_digest="0" * 64,
        tokenizer_digest=tokenizer_digest,
        eos_token_ids=[2],
        limits=executor_pb2.EngineLimits(
            context_length=context_length,
            vocab_size=vocab_size,
            max_running=128,
            max_waiting=1024,
            max_logprobs=20,
            adapter_slots=8,
            max_lora_rank=64,
        ),
    )
