"""A whole executor without a model: scheduler, arithmetic runner and loader, stepped by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from executor.arithmetic.loader import ArithmeticLoader
from executor.arithmetic.runner import ArithmeticRunner, PendingStep, continuation
from executor.control.config import SchedulerConfig
from executor.control.engine import Engine, InFlight
from executor.control.mailbox import Command, Mailbox, Submit
from executor.control.outputs import Admitted, Failed, Finished, Outputs, PromptLogprobsReady
from executor.control.plan import StepPlan, StepResult
from executor.control.request import FinishReason, Request, RequestKey, SamplingParams
from executor.control.runner import Runner
from executor.control.scheduler import Scheduler

VOCAB = 97


def ids(*token_ids: int) -> np.ndarray:
    return np.array(token_ids, np.int32)


def story(text: str) -> str:
    """An expected `World.story`, as it stands indented in a test."""
    return dedent(text).strip()


def make_request(
    index: int = 0,
    prompt: ArrayLike | None = None,
    *,
    client: int = 1,
    digest: str = "",
    salt: str = "",
    emitted: np.ndarray | None = None,
    remaining: float | None = None,
    max_tokens: int = 4,
    ignore_eos: bool = True,
    **sampling: Any,
) -> Request:
    return Request(
        client=client,
        index=index,
        prompt_ids=ids(1, 2, 3, 4, 5) if prompt is None else np.asarray(prompt, np.int32),
        emitted_ids=ids() if emitted is None else np.asarray(emitted, np.int32),
        digest=digest,
        salt=salt,
        remaining_seconds=remaining,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos, **sampling),
    )


@dataclass
class Heard:
    """All that was published about one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason = FinishReason.NONE
    admitted: list[Admitted] = field(default_factory=list)
    finished: Finished | None = None
    failed: Failed | None = None
    prompt_logprobs: list[PromptLogprobsReady] = field(default_factory=list)
    top: list[tuple[list[int], list[float]]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.finished is not None or self.failed is not None


class Recorder:
    """Passes plans on to a runner and keeps each as a line of text.

    "7: 1@0+5* 2@8+1*" is step 7, with 5 tokens of request 1 from position 0 and one of request 2 at
    position 8, both sampled.
    """

    def __init__(self, runner: Runner[PendingStep], index_of: Callable[[np.ndarray], int]) -> None:
        self._runner = runner
        self._index_of = index_of
        self._tenants: dict[int, int] = {}
        self.lines: list[str] = []
        self.objection: AssertionError | None = None

    def launch(self, plan: StepPlan) -> PendingStep:
        for install in plan.installs:
            self._tenants[install.row] = self._index_of(install.prompt_ids)
        parts: list[str] = []
        for at, row in enumerate(plan.rows.tolist()):
            count = plan.query_splits[at + 1] - plan.query_splits[at]
            star = "*" if plan.samples[at] else ""
            parts.append(f"{self._tenants[row]}@{plan.start_positions[at]}+{count}{star}")
        self.lines.append(f"{plan.step}: {' '.join(parts)}")
        return self._runner.launch(plan)

    def collect(self, pending: PendingStep) -> StepResult:
        try:
            return self._runner.collect(pending)
        except AssertionError as error:
            self.objection = error  # the engine takes it for a broken device; the test must not
            raise


class World:
    """Steps an engine by hand and remembers what it published; checks all integrity after each step."""

    def __init__(
        self,
        *,
        packs: Mapping[str, int] | None = None,
        delay: Callable[[], int] = lambda: 0,
        overlap: bool = False,
        check: bool = True,
        clock: Callable[[], float] = lambda: 0.0,
        runner_wrapper: Callable[[ArithmeticRunner], Runner[PendingStep]] = lambda runner: runner,
        **config: Any,
    ) -> None:
        settings: dict[str, Any] = {
            "context": 64,
            "pages": 32,
            "page_size": 4,
            "max_running": 4,
            "max_step_tokens": 16,
        }
        settings |= config
        if packs and "adapter_slots" not in settings:
            settings |= {"adapter_slots": 2, "pool_units": 64}
        self.config = SchedulerConfig(**settings)
        self.packs = packs or {}
        self.loader = ArithmeticLoader(
            slots=self.config.adapter_slots, units=self.config.pool_units, packs=self.packs, delay=delay
        )
        runner = runner_wrapper(
            ArithmeticRunner(
                rows=self.config.max_running,
                columns=-(-self.config.longest // self.config.page_size),
                pages=self.config.pages,
                page_size=self.config.page_size,
                host_pages=self.config.host_pages,
                vocab_size=VOCAB,
                eos_token_ids=self.config.eos_token_ids,
                loader=self.loader,
            )
        )
        self._index_by_prompt: dict[int, int] = {}
        self.runner = Recorder(runner, lambda prompt: self._index_by_prompt[id(prompt)])
        self.scheduler = Scheduler(self.config)
        self.mailbox = Mailbox()
        self.published: list[Outputs] = []
        self.heard: dict[RequestKey, Heard] = {}
        self.engine: Engine[PendingStep] = Engine(
            scheduler=self.scheduler,
            runner=self.runner,
            loader=self.loader,
            mailbox=self.mailbox,
            publish=self._hear,
            clock=clock,
            overlap=overlap,
        )
        self._check = check
        self._in_flight: InFlight[PendingStep] | None = None

    def post(self, *commands: Command) -> None:
        assert self.mailbox.post(commands)

    @property
    def story(self) -> str:
        """All plans so far, a line each."""
        return "\n".join(self.runner.lines)

    def submit(self, *requests: Request) -> None:
        for request in requests:
            self._index_by_prompt[id(request.prompt_ids)] = request.index
        self.post(*(Submit(request) for request in requests))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._in_flight = self.engine.step(self._in_flight)
            if self.runner.objection is not None:
                raise self.runner.objection
            if self._check:
                self.scheduler.check_integrity()

    def settle(self, limit: int = 2000) -> int:
        """Steps until no request is left and no step is in flight; returns how many steps that took."""
        for steps in range(1, limit + 1):
            self.step()
            if not len(self.scheduler) and self._in_flight is None:
                return steps
        raise AssertionError(f"{len(self.scheduler)} requests are left after {limit} steps")

    def of(self, request: Request) -> Heard:
        return self.heard.setdefault(request.key, Heard())

    def _hear(self, outputs: Outputs) -> None:
        self.published.append(outputs)
        splits = outputs.token_splits
        for at, (client, index) in enumerate(zip(outputs.clients, outputs.indexes, strict=True)):
            heard = self.heard.setdefault(RequestKey(int(client), int(index)), Heard())
            assert not heard.over, f"request {index} gets tokens after its end"
            heard.token_ids += outputs.token_ids[splits[at] : splits[at + 1]].tolist()
            heard.logprobs += outputs.logprobs[splits[at] : splits[at + 1]].tolist()
            heard.finish = FinishReason(int(outputs.finish_reasons[at]))
            if at in outputs.top:
                heard.top.append((outputs.top[at][0].tolist(), outputs.top[at][1].tolist()))
        for event in outputs.events:
            heard = self.heard.setdefault(event.key, Heard())
            match event:
                case Admitted():
                    heard.admitted.append(event)
                case Finished():
                    assert not heard.over, f"{event.key} ends twice"
                    heard.finished = event
                case Failed():
                    heard.failed = event
                case PromptLogprobsReady():
                    heard.prompt_logprobs.append(event)
                case _:
                    raise AssertionError(f"{event} is not for publication")

    def assert_empty(self, *, cached: bool = True) -> None:
        """No row, page, pin or account is left; cached prefixes and idle resident adapters may be."""
        statistics = self.scheduler.statistics()
        assert statistics.waiting == statistics.running == statistics.pages_held == 0, statistics
        assert cached or statistics.pages_cached == 0, statistics
        self.scheduler.check_integrity()


def expected(request: Request, config: SchedulerConfig) -> tuple[list[int], FinishReason]:
    """What a request generates alone, and why it ends, by the arithmetic alone."""
    sampling = request.sampling
    longest = min(sampling.max_tokens, config.longest - len(request.prompt_ids))
    stop_ids = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else config.eos_token_ids)}
    tokens: list[int] = []
    prompt = request.prompt_ids
    while len(tokens) < longest:
        history = np.concatenate([prompt, np.array(tokens, np.int32)])
        token = int(continuation(history, request.digest, 1, VOCAB)[0])
        while len(tokens) < sampling.min_tokens and token in stop_ids:
            token = (token + 1) % VOCAB
        tokens.append(token)
        if token in stop_ids:
            return tokens, FinishReason.STOP
    return tokens, FinishReason.LENGTH
