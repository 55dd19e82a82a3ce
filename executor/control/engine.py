"""The loop that everything else is for: commands in, a step, tokens out.

One thread runs it. With `overlap`, a step is launched before the result of the last is collected, so that
the device never waits for the scheduler:

    launch 0 | launch 1, collect 0 | launch 2, collect 1 | ...
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic

from executor.control.loader import AdapterLoader
from executor.control.mailbox import Abort, ClientGone, Command, Finish, Hint, Mailbox, Submit
from executor.control.outputs import Admitted, Outputs
from executor.control.plan import StepPlan, StepResult
from executor.control.request import Code
from executor.control.residency import Residency
from executor.control.runner import Pending, Runner
from executor.control.scheduler import Scheduler
from executor.control.slots import Acquire, Clear, Copy, Install, Prefetch, Release, Retired
from executor.control.timings import Deadlines, Stopwatch
from executor.control.usage import UsageTable

_LOG = logging.getLogger(__name__)
_LONGEST_WAIT = 1.0
_FAILURES_TOLERATED = 3


@dataclass(frozen=True, slots=True)
class InFlight(Generic[Pending]):
    """A launched step. Whoever holds this collects it."""

    step: int
    pending: Pending


class Engine(Generic[Pending]):
    """Joins scheduler, runner, loader and mailbox.

    `publish` takes the outputs of each step, on the engine's thread; it must neither wait nor raise. `rest`
    is called while there is nothing to do, and again as long as it returns that it found something; commands
    wait for it.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        runner: Runner[Pending],
        loader: AdapterLoader,
        mailbox: Mailbox,
        publish: Callable[[Outputs], None],
        clock: Callable[[], float] = time.monotonic,
        overlap: bool = True,
        rest: Callable[[], bool] = lambda: False,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._loader = loader
        self._mailbox = mailbox
        self._publish = publish
        self._clock = clock
        self._overlap = overlap
        self._rest = rest
        self._stopwatch = Stopwatch()
        self.usage = UsageTable()
        """What adapters were asked for; to be read from any thread."""
        self._deadlines = Deadlines(scheduler.__contains__)
        self._failures = 0
        self._idle = False
        self._stopping = False
        self._crashed = False

    @property
    def healthy(self) -> bool:
        """False when step after step fails, or the loop has crashed: the supervisor should act."""
        return self._failures < _FAILURES_TOLERATED and not self._crashed

    def run(self) -> None:
        """The body of the engine's thread; returns after `stop`. A bug of ours ends it and is raised."""
        in_flight: InFlight[Pending] | None = None
        try:
            while not self._stopping:
                in_flight = self.step(in_flight)
                if self._idle and not self._rest():
                    self._mailbox.wait(self._deadlines.wait(self._clock(), _LONGEST_WAIT))
            if in_flight is not None:
                self._collect(in_flight)
        except BaseException:
            self._crashed = True
            _LOG.exception("the engine's loop has ended")
            raise
        finally:
            self._mailbox.close()

    def stop(self) -> None:
        """Ends `run` after the step it is in. From any thread."""
        self._stopping = True
        self._mailbox.wake()

    def step(self, in_flight: InFlight[Pending] | None) -> InFlight[Pending] | None:
        """One turn, with the step in flight before it; returns the one in flight after it."""
        self._receive()
        plan = self._scheduler.plan()
        gave_up = self._load_adapters()
        self._follow_moves()
        launched = self._launch(plan) if plan is not None else None
        if not self._overlap and launched is not None:
            in_flight, launched = launched, None
        self._idle = plan is None and in_flight is None and not gave_up
        if in_flight is not None:
            self._collect(in_flight)
        self._send(self._scheduler.take_outputs())
        return launched

    def _receive(self) -> None:
        now = self._clock()
        for command in self._mailbox.take():
            self._obey(command, now)
        for key in self._deadlines.due(now):
            message = "the deadline passed before the answer was complete: allow more time"
            self._scheduler.fail(key, Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message)
        for event in self._loader.poll():
            self._scheduler.handle(event)
        self._follow_moves()

    def _obey(self, command: Command, now: float) -> None:
        match command:
            case Submit(request):
                self._stopwatch.start(request.key, request.digest, now)
                self._scheduler.add(request)
                if request.remaining_seconds is not None:
                    self._deadlines.add(request.key, now + request.remaining_seconds)
            case Finish(key):
                self._scheduler.finish(key)
            case Abort(key):
                self._scheduler.abort(key)
            case Hint(digest):
                self._scheduler.hint(digest)
            case ClientGone(client):
                self._scheduler.abort_client(client)

    def _load_adapters(self) -> bool:
        """Passes the scheduler's wishes on; returns whether room was given up that others may wait for."""
        loader, actions = self._loader, self._scheduler.take_actions()
        for action in actions:
            match action:
                case Prefetch(digest):
                    loader.prefetch(digest)
                case Acquire(digest):
                    loader.acquire(digest)
                case Copy(digest, unit_offset, slot):
                    loader.copy(digest, unit_offset, slot)
                case Install(slot, digest):
                    loader.install(slot, digest)
                case Clear(slot):
                    loader.clear(slot)
                case Release(digest):
                    loader.release(digest)
                case Retired(digest):
                    loader.retired(digest)
        return any(isinstance(action, Release) for action in actions)

    def _follow_moves(self) -> None:
        moves = self._scheduler.take_moves()
        if not moves:
            return
        now = self._clock()
        for move in moves:
            self._stopwatch.move(move, now)
            if move.residency == Residency.RESIDENT:
                self.usage.loaded(move.digest)

    def _launch(self, plan: StepPlan) -> InFlight[Pending] | None:
        try:
            return InFlight(plan.step, self._runner.launch(plan))
        except Exception:
            self._step_failed(plan.step)
            return None

    def _collect(self, in_flight: InFlight[Pending]) -> None:
        try:
            result: StepResult = self._runner.collect(in_flight.pending)
        except Exception:
            self._step_failed(in_flight.step)
            return
        self._failures = 0
        self._send(self._scheduler.advance(result))

    def _step_failed(self, step: int) -> None:
        self._failures += 1
        _LOG.exception("step %d failed, %d in a row", step, self._failures)
        self._scheduler.fail_step(step, "a step of the model failed; this request may be sent again")

    def _send(self, outputs: Outputs) -> None:
        if outputs.events:
            outputs = replace(outputs, events=self._stopwatch.stamp(outputs.events, self._clock()))
            for event in outputs.events:
                if isinstance(event, Admitted):
                    self.usage.admitted(event)
        if outputs:
            self._publish(outputs)
