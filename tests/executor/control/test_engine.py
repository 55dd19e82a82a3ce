"""The loop: timings, deadlines, failing steps, and the thread."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from executor.arithmetic.loader import ArithmeticLoader
from executor.arithmetic.runner import ArithmeticRunner, PendingStep
from executor.control.config import SchedulerConfig
from executor.control.engine import Engine
from executor.control.mailbox import Mailbox, Submit
from executor.control.outputs import Admitted, Outputs
from executor.control.plan import StepPlan, StepResult
from executor.control.request import Code, RequestKey
from executor.control.scheduler import Scheduler
from executor.control.timings import Deadlines
from executor.control.usage import UsageTable
from tests.support.control_traffic import FlakyRunner
from tests.support.control_world import World, expected, make_request
from tests.support.waiting import WAIT_SECONDS

both_depths = pytest.mark.parametrize("overlap", [False, True])


class Clock:
    """Moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_timings_tell_queue_adapter_and_first_token_apart():
    clock = Clock()
    world = World(packs={"a": 10}, delay=lambda: 1, clock=clock, max_running=1)
    before, request = make_request(1, max_tokens=12), make_request(2, digest="a", max_tokens=3)
    world.submit(before, request)
    while not world.of(request).over:
        world.step()
        clock.now += 1
    admitted, finished = world.of(request).admitted[0], world.of(request).finished
    assert (admitted.slot_wait_seconds, admitted.load_wait_seconds) == (0, 4), "leased at step 2, copied at 4"
    assert admitted.queue_wait_seconds == 8
    assert not admitted.was_resident
    assert admitted.queued_seconds == 12, "the row was taken for so long"
    assert finished is not None
    assert finished.first_token_seconds == 12
    first = world.of(before).admitted[0]
    assert (first.queued_seconds, first.slot_wait_seconds, first.load_wait_seconds) == (0, 0, 0)


def test_waiting_for_a_slot_is_told_apart_from_waiting_for_weights():
    clock = Clock()
    world = World(packs={"a": 10, "b": 10}, delay=lambda: 1, clock=clock, adapter_slots=1, pool_units=10)
    first, second = make_request(1, digest="a", max_tokens=9), make_request(2, digest="b", max_tokens=3)
    world.submit(first, second)
    while not world.of(second).over:
        world.step()
        clock.now += 1
    waited = world.of(second).admitted[0]
    assert waited.load_wait_seconds == 4, "two steps for the lease, two for the copy"
    assert waited.slot_wait_seconds == waited.queued_seconds - 4 > 5
    world.settle()
    assert not world.engine._stopwatch._moments
    assert list(world.engine._stopwatch._adapters) == ["b"], "only the resident one is still followed"
    a, b = world.engine.usage.busiest(10)
    assert {a.digest, b.digest} == {"a", "b"}
    assert (a.requests, a.pool_hits, a.pool_loads) == (1, 0, 1)


def test_usage_is_bounded_and_loses_nothing():
    usage = UsageTable(entries=4)
    for number in range(40):
        for _ in range(1 + 5 * (number < 3)):
            event = Admitted(
                key=RequestKey(1, number), cached_tokens=0, digest=str(number), queued_seconds=1.0
            )
            usage.admitted(event)
        usage.loaded(str(number))
    assert len(usage._usage) <= 8
    *listed, others = usage.busiest(3)
    assert {entry.digest for entry in listed} == {"0", "1", "2"}
    assert others.digest == "others"
    assert (others.requests, others.pool_loads) == (37, 37)
    assert usage.total().requests == 55
    assert usage.total().queue_wait_seconds == 55


@both_depths
def test_a_deadline_ends_a_request_wherever_it_is(overlap: bool):
    clock = Clock()
    world = World(clock=clock, max_running=1, overlap=overlap)
    running, waiting, patient = (
        make_request(number, max_tokens=40, remaining=remaining)
        for number, remaining in enumerate((5.0, 2.0, None))
    )
    world.submit(running, waiting, patient)
    world.step()
    clock.now += 2
    world.step()
    failed = world.of(waiting).failed
    assert failed is not None
    assert failed.code == Code.DEADLINE_EXCEEDED
    assert not world.of(running).over
    clock.now += 3
    world.step()
    assert world.of(running).failed is not None
    world.settle()
    assert world.of(patient).token_ids == expected(patient, world.config)[0]


def test_deadlines_of_ended_requests_are_forgotten():
    alive = {make_request(number).key for number in range(10)}
    deadlines = Deadlines(alive.__contains__)
    for number in range(1000):
        deadlines.add(make_request(number).key, 1e9 + number)
    assert len(deadlines) < 150
    assert deadlines.due(2e9)[:10] == sorted(alive)


class Breaking(ArithmeticRunner):
    """Fails where told to."""

    launches: set[int]
    collects: set[int]

    def launch(self, plan: StepPlan) -> PendingStep:
        if plan.step in self.launches:
            raise RuntimeError("secret: the launch failed")
        return super().launch(plan)

    def collect(self, pending: PendingStep) -> StepResult:
        result = super().collect(pending)
        if pending.plan.step in self.collects:
            raise RuntimeError("secret: the result is lost")
        return result


def breaking(launches: set[int], collects: set[int]) -> Callable[[ArithmeticRunner], Breaking]:
    def wrap(runner: ArithmeticRunner) -> Breaking:
        runner.__class__ = Breaking
        assert isinstance(runner, Breaking)
        runner.launches, runner.collects = launches, collects
        return runner

    return wrap


@both_depths
@pytest.mark.parametrize("where", ["launch", "collect"])
def test_a_step_that_fails_takes_its_own_requests_and_no_others(overlap: bool, where: str):
    world = World(
        overlap=overlap,
        runner_wrapper=breaking({3} if where == "launch" else set(), {3} if where == "collect" else set()),
        max_running=2,
    )
    early = [make_request(number, np.arange(9), max_tokens=20) for number in range(2)]
    late = make_request(5, np.arange(9), max_tokens=6)
    world.submit(*early, late)
    world.settle()
    for request in early:
        failed = world.of(request).failed
        assert failed is not None
        assert (failed.code, failed.reason) == (Code.INTERNAL, "STEP_FAILED")
        assert "secret" not in failed.message
    assert world.of(late).token_ids == expected(late, world.config)[0]
    assert world.engine.healthy
    world.assert_empty()


def test_page_tables_that_a_failed_launch_lost_are_sent_again():
    """Request 2 sits the failing step out, for want of a page, and misses that its prompt has moved."""
    world = World(pages=7, page_size=1, overlap=True, runner_wrapper=breaking({2}, set()))
    first, second = (make_request(number, [5, 6], max_tokens=5) for number in (1, 2))
    world.submit(first, second)
    world.step(3)
    assert world.story.splitlines()[2] == "2: 1@3+1*"
    third = make_request(3, [8, 9, 10], max_tokens=1)
    world.submit(third)
    world.settle()
    assert world.of(first).failed is not None
    for request in (second, third):
        assert world.of(request).token_ids == expected(request, world.config)[0]


@both_depths
def test_an_engine_whose_steps_keep_failing_says_so(overlap: bool):
    world = World(overlap=overlap, runner_wrapper=breaking(set(), set(range(2, 6))))
    health: list[bool] = []
    for number in range(6):
        world.submit(make_request(number, max_tokens=3))
        for _ in range(2):
            world.step()
            health.append(world.engine.healthy)
    world.settle()
    assert health[0]
    assert not all(health)
    world.submit(make_request(50, max_tokens=3))
    world.settle()
    assert world.engine.healthy, "a step has worked again"
    world.assert_empty()


def threaded(
    publish: Callable[[Outputs], None], runner_fails: float = 0.0, **parts: Any
) -> tuple[Engine[PendingStep], Mailbox]:
    config = SchedulerConfig(context=64, pages=64, page_size=4, max_running=4, adapter_slots=2, pool_units=20)
    loader = ArithmeticLoader(slots=2, units=20, packs={"a": 10})
    runner = ArithmeticRunner(rows=4, columns=16, pages=64, page_size=4, vocab_size=97, loader=loader)
    mailbox = Mailbox()
    engine: Engine[PendingStep] = Engine(
        scheduler=Scheduler(config),
        runner=FlakyRunner(runner, random.Random(0), runner_fails),
        loader=loader,
        mailbox=mailbox,
        publish=publish,
        **parts,
    )
    return engine, mailbox


def test_the_thread_serves_sleeps_and_stops():
    tokens: list[int] = []
    done = threading.Event()

    def publish(outputs: Outputs) -> None:
        tokens.extend(outputs.token_ids.tolist())
        if outputs.finish_reasons.any():
            done.set()

    engine, mailbox = threaded(publish)
    thread = threading.Thread(target=engine.run)
    thread.start()
    for number in range(3):
        tokens.clear()
        done.clear()
        request = make_request(number, digest="a", max_tokens=5)
        assert mailbox.post([Submit(request)])
        assert done.wait(WAIT_SECONDS)
        assert tokens == expected(request, SchedulerConfig(context=64, pages=64))[0]
    engine.stop()
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert engine.healthy
    assert not mailbox.post([Submit(make_request(9))]), "nobody would read it"


def test_it_rests_until_there_is_nothing_left_or_it_is_to_stop():
    left = [3]

    def rest() -> bool:
        left[0] -= 1
        if not left[0]:
            engine.stop()
        return True

    engine, _ = threaded(lambda _: None, rest=rest)
    engine.run()
    assert left == [0]


def test_a_bug_of_ours_ends_the_loop_loudly():
    def publish(_: Outputs) -> None:
        raise AssertionError("a bug")

    engine, mailbox = threaded(publish)
    mailbox.post([Submit(make_request(1))])
    with pytest.raises(AssertionError, match="a bug"):
        engine.run()
    assert not engine.healthy
    assert not mailbox.post([Submit(make_request(2))])
