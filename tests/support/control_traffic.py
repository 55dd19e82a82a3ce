"""Random traffic against a whole executor, with everything that clients, stores and devices do to it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from executor.arithmetic.runner import ArithmeticRunner, PendingStep
from executor.control.mailbox import Abort, ClientGone, Finish, Hint
from executor.control.plan import StepPlan, StepResult
from executor.control.request import Code, FinishReason, Request, RequestKey
from tests.support.control_world import VOCAB, World, expected, ids, make_request

PACKS = {"small": 8, "medium": 16, "large": 36, "tiny": 1, "other": 12, "too-large": 1000}
DIGESTS = ["", "", "small", "medium", "large", "tiny", "other", "too-large", "unknown"]
WEIGHTS = [8, 8, 6, 4, 2, 3, 4, 0.2, 0.2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How likely each thing is, per step."""

    arrival: float = 0.35
    abort: float = 0.02
    finish: float = 0.02
    client_gone: float = 0.003
    retire: float = 0.01
    hint: float = 0.01
    step_failure: float = 0.0
    duplicate: float = 0.002


class FlakyRunner:
    """Fails now and then, at either end of a step."""

    def __init__(self, runner: ArithmeticRunner, chance: random.Random, likelihood: float) -> None:
        self._runner = runner
        self._chance = chance
        self._likelihood = likelihood

    def launch(self, plan: StepPlan) -> PendingStep:
        if self._chance.random() < self._likelihood:
            raise RuntimeError("the device is gone")
        return self._runner.launch(plan)

    def collect(self, pending: PendingStep) -> StepResult:
        result = self._runner.collect(pending)
        if self._chance.random() < self._likelihood:
            raise RuntimeError("the result is gone")
        return result


class Traffic:
    """Drives a `World` and judges what came of every request."""

    def __init__(self, seed: int, *, overlap: bool, mix: Mix | None = None, **config: Any) -> None:
        self.chance = random.Random(seed)
        self.mix = mix or Mix()
        settings: dict[str, Any] = {
            "context": 48,
            "pages": 40,
            "page_size": 4,
            "max_running": 6,
            "max_waiting": 24,
            "max_step_tokens": 20,
            "adapter_slots": 3,
            "pool_units": 48,
            "max_leases": 3,
            "slot_quantum": 24,
            "eos_token_ids": (7, 8),
        }
        flaky = self.mix.step_failure
        self.world = World(
            packs=PACKS,
            delay=lambda: self.chance.choice((0, 0, 1, 3, 8)),
            overlap=overlap,
            runner_wrapper=lambda runner: FlakyRunner(runner, self.chance, flaky) if flaky else runner,  # pyright: ignore[reportArgumentType]
            **(settings | config),
        )
        self.requests: dict[RequestKey, Request] = {}
        self.live: dict[RequestKey, None] = {}
        self.submitted_at: dict[RequestKey, int] = {}
        self.ended: dict[RequestKey, str] = {}
        self.clients = [1, 2, 3]
        self.steps = 0
        self.longest_wait = 0
        self._numbers = 0
        self._oldest = (-1, 0)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._commands()
            self.world.step()
            self.steps += 1
            self._check_progress()
            self._measure_waits()

    def finish(self) -> None:
        """Lets everything end, then judges it all."""
        self.world.settle()
        self.world.step(2)
        self.world.assert_empty()
        for request in self.requests.values():
            self._judge(request)
        for digest in PACKS:
            self.world.loader.retire(digest)
        self.world.step(40)
        assert self.world.loader.held == 0, "an adapter is kept that is retired"
        assert self.world.scheduler.statistics().adapter_units_free == self.world.config.pool_units

    def _commands(self) -> None:
        chance, mix = self.chance, self.mix
        if chance.random() < mix.arrival:
            self.world.submit(*(self._request() for _ in range(chance.choice((1, 1, 2, 5)))))
        running = [key for key in self.live if key not in self.ended]
        if running and chance.random() < mix.abort:
            self._end(chance.choice(running), "abort")
        if running and chance.random() < mix.finish:
            self._end(chance.choice(running), "finish")
        if chance.random() < mix.client_gone:
            place = chance.randrange(len(self.clients))
            gone = self.clients[place]
            self.clients[place] = max(self.clients) + 1
            self.world.post(ClientGone(gone))
            for key in running:
                if key.client == gone:
                    self.ended[key] = "abort"
        if chance.random() < mix.retire:
            self.world.loader.retire(chance.choice(list(PACKS)))
        if chance.random() < mix.hint:
            self.world.post(Hint(chance.choice(DIGESTS)))
        if chance.random() < mix.duplicate:
            self.world.post(Abort(RequestKey(1, 10**9)), Finish(RequestKey(77, 0)))

    def _end(self, key: RequestKey, how: str) -> None:
        self.ended[key] = how
        self.world.post(Abort(key) if how == "abort" else Finish(key))

    def _request(self) -> Request:
        chance = self.chance
        self._numbers += 1
        family = np.random.default_rng(chance.randrange(3)).integers(0, VOCAB, 40)
        shared = chance.choice((0, 3, 8, 13, 20))
        tail = [chance.randrange(VOCAB) for _ in range(chance.choice((1, 2, 5, 9, 24)))]
        prompt = ids(*family[:shared].tolist(), *tail)
        request = make_request(
            self._numbers,
            prompt,
            client=chance.choice(self.clients),
            digest=chance.choices(DIGESTS, WEIGHTS)[0],
            salt=chance.choice(("", "", "", "tenant")),
            max_tokens=chance.choice((1, 2, 6, 12, 40)),
            min_tokens=chance.choice((0, 0, 0, 3)),
            ignore_eos=chance.random() < 0.7,
            stop_token_ids=chance.choice(((), (11,), (11, 12, 13, 14))),
            logprobs=chance.choice((None, None, 0, 2)),
            prompt_logprobs=chance.choice((None, None, None, None, 0, 1)),
        )
        if chance.random() < 0.1:
            answer, _ = expected(request, self.world.config)
            request = make_request(
                self._numbers,
                prompt,
                client=request.client,
                digest=request.digest,
                emitted=ids(*answer[: chance.randrange(len(answer) + 1)]),
                max_tokens=request.sampling.max_tokens,
                min_tokens=request.sampling.min_tokens,
                ignore_eos=request.sampling.ignore_eos,
                stop_token_ids=request.sampling.stop_token_ids,
            )
        self.requests[request.key] = request
        self.submitted_at[request.key] = self.steps
        self.live[request.key] = None
        return request

    def _check_progress(self) -> None:
        """Whoever has been the oldest running request for a few steps is in one of the last plans.

        It may sit out until steps in flight have given back the pages of those that it displaced, or when its
        last token is being sampled already.
        """
        table = self.world.scheduler._table
        staying = np.flatnonzero(table.live & ~table.leaving & (table.planned + 1 < table.limit))
        if not len(staying):
            return
        row = staying[table.admission[staying].argmin()]
        admission, since = self._oldest
        if admission != table.admission[row]:
            since = self.steps
        self._oldest = int(table.admission[row]), since
        planned = self.world.scheduler.statistics().steps
        if self.steps - since > 3:
            assert table.last_step[row] >= planned - 3, (
                f"the oldest request is not in steps up to {planned - 1}"
            )

    def _measure_waits(self) -> None:
        for key in tuple(self.live):
            heard = self.world.heard.get(key)
            if heard is not None and (heard.admitted or heard.over) and key in self.submitted_at:
                self.longest_wait = max(self.longest_wait, self.steps - self.submitted_at.pop(key))
            if heard is not None and heard.over:
                del self.live[key]
            if key in self.ended:
                self.submitted_at.pop(key, None)
        if self.submitted_at:
            self.longest_wait = max(self.longest_wait, self.steps - min(self.submitted_at.values()))

    def _judge(self, request: Request) -> None:
        """The answer is the same as if the request had been alone, up to where somebody cut it off."""
        heard, config = self.world.of(request), self.world.config
        answer, reason = expected(request, config)
        answer = answer[len(request.emitted_ids) :]
        assert heard.over, f"{request.key} never ended"
        assert heard.token_ids == answer[: len(heard.token_ids)], f"{request.key} got other tokens than alone"
        if heard.failed is not None:
            self._judge_failure(request)
            return
        assert heard.finished is not None
        if (
            heard.finished.reason in (FinishReason.STOP, FinishReason.LENGTH)
            and request.key not in self.ended
        ):
            assert heard.token_ids == answer, f"{request.key} lost tokens"
            assert heard.finished.reason == reason
            assert heard.finished.completion_tokens == len(answer) + len(request.emitted_ids)
        else:
            assert request.key in self.ended, f"{request.key} ended for no reason"
        assert len(heard.admitted) <= 1
        self._judge_logprobs(request)

    def _judge_failure(self, request: Request) -> None:
        failed = self.world.of(request).failed
        assert failed is not None
        if failed.code == Code.INVALID_ARGUMENT:
            assert len(request.prompt_ids) >= self.world.config.longest
        elif failed.code == Code.NOT_FOUND:
            assert request.digest == "unknown"
        elif failed.code == Code.FAILED_PRECONDITION:
            assert request.digest == "too-large"
        elif failed.code == Code.INTERNAL:
            assert self.mix.step_failure
        else:
            assert failed.reason == "QUEUE_FULL"

    def _judge_logprobs(self, request: Request) -> None:
        heard = self.world.of(request)
        assert heard.logprobs == [-(token % 8) / 8 for token in heard.token_ids]
        count = request.sampling.logprobs
        if count:
            assert [top[0][0] for top in heard.top] == heard.token_ids
        else:
            assert not heard.top
        if request.sampling.prompt_logprobs is not None and heard.token_ids:
            parts = [part.logprobs for part in heard.prompt_logprobs]
            got = np.concatenate(parts) if parts else np.empty(0)
            assert np.array_equal(got, -(request.prompt_ids[1:] % 8) / 8), "prompt logprobs lost or repeated"
        elif request.sampling.prompt_logprobs is None:
            assert not heard.prompt_logprobs
