"""Sharing prefixes, running out of pages, coming back, and going away."""

from __future__ import annotations

import numpy as np
import pytest

from executor.arithmetic.runner import ArithmeticRunner
from executor.control.config import SchedulerConfig
from executor.control.mailbox import Abort, ClientGone, Finish
from executor.control.request import FinishReason
from executor.control.scheduler import Scheduler
from tests.support.control_world import World, expected, ids, make_request, story

PROMPT = np.arange(10, 40)
both_depths = pytest.mark.parametrize("overlap", [False, True])


def check_answers(world: World, *requests) -> None:
    for request in requests:
        tokens, reason = expected(request, world.config)
        heard = world.of(request)
        assert (heard.token_ids, heard.finish) == (tokens[len(request.emitted_ids) :], reason)


def cached(world: World, request) -> int:
    return world.of(request).admitted[0].cached_tokens


def test_a_prompt_is_found_again_up_to_before_its_last_token():
    world = World()
    first, again = make_request(1, PROMPT[:12]), make_request(2, PROMPT[:12])
    longer, other = make_request(3, PROMPT[:15]), make_request(4, np.append(PROMPT[:6], 0))
    world.submit(first)
    world.settle()
    world.submit(again, longer, other)
    world.settle()
    assert cached(world, again) == 8, "the last page is full, but its last token must be computed"
    assert cached(world, longer) == 12
    assert cached(world, other) == 4
    check_answers(world, first, again, longer, other)


def test_an_answer_is_found_again_too():
    world = World()
    first = make_request(1, PROMPT[:5], max_tokens=9)
    world.submit(first)
    world.settle()
    history = [*PROMPT[:5].tolist(), *world.of(first).token_ids, 1, 2, 3]
    follow_up = make_request(2, ids(*history))
    world.submit(follow_up)
    world.settle()
    assert cached(world, follow_up) == 12, "13 tokens were computed, the last sampled one was not"
    check_answers(world, follow_up)


def test_salts_keep_prompts_apart():
    world = World()
    requests = [
        make_request(number, PROMPT[:12], salt=salt) for number, salt in enumerate(["", "x", "y", "x"])
    ]
    for request in requests:
        world.submit(request)
        world.settle()
    assert [cached(world, request) for request in requests] == [0, 0, 0, 8]


def test_a_request_with_prompt_logprobs_reads_nothing_cached_and_leaves_its_prompt():
    world = World()
    first = make_request(1, PROMPT[:12], prompt_logprobs=0)
    second, third = make_request(2, PROMPT[:12], prompt_logprobs=0), make_request(3, PROMPT[:12])
    for request in (first, second, third):
        world.submit(request)
        world.settle()
    assert [cached(world, request) for request in (first, second, third)] == [0, 0, 8]


@both_depths
def test_a_running_request_shares_its_prompt(overlap: bool):
    world = World(overlap=overlap)
    first, second = make_request(1, PROMPT[:13], max_tokens=20), make_request(2, PROMPT[:13], max_tokens=20)
    world.submit(first)
    world.step(3)
    world.submit(second)
    world.step(2)
    assert cached(world, second) == 12
    world.settle()
    check_answers(world, first, second)


@both_depths
def test_equal_prompts_computed_at_once_end_up_in_the_same_pages(overlap: bool):
    world = World(overlap=overlap, max_step_tokens=64)
    requests = [make_request(number, PROMPT[:13], max_tokens=12) for number in range(4)]
    world.submit(*requests)
    world.step(4)
    assert world.scheduler.statistics().pages_held == 3 + 4, "3 shared ones, and one of each"
    world.settle()
    check_answers(world, *requests)
    world.assert_empty()


@both_depths
def test_who_came_last_makes_room_and_comes_back(overlap: bool):
    world = World(pages=8, overlap=overlap)
    old, young = make_request(1, PROMPT[:8], max_tokens=20), make_request(2, PROMPT[5:13], max_tokens=20)
    world.submit(old, young)
    world.settle()
    assert world.scheduler.statistics().preemptions > 0
    ends = [line for line in world.story.splitlines() if "1@26+1*" in line]
    assert len(ends) == 1, "the older one is never interrupted"
    assert world.story.count("1@0+8*") == 1
    check_answers(world, old, young)
    assert len(world.of(young).admitted) == 1, "coming back is no news to the client"
    world.assert_empty()


def test_preemption_as_a_story():
    world = World(pages=5, max_running=2)
    world.submit(make_request(1, PROMPT[:8], max_tokens=9), make_request(2, PROMPT[5:12], max_tokens=4))
    world.settle()
    assert world.story == story("""
        0: 1@0+8* 2@0+7*
        1: 1@8+1* 2@7+1*
        2: 1@9+1*
        3: 1@10+1*
        4: 1@11+1*
        5: 1@12+1*
        6: 1@13+1*
        7: 1@14+1*
        8: 1@15+1*
        9: 2@4+5*
        10: 2@9+1*
    """), "one page of request 2 was not needed by request 1, and is found again"


@both_depths
def test_emitted_tokens_count_when_a_request_is_sent_again(overlap: bool):
    world = World(overlap=overlap)
    alone, _ = expected(make_request(1, PROMPT[:6], max_tokens=9), world.config)
    again = make_request(1, PROMPT[:6], max_tokens=9, emitted=ids(*alone[:4]))
    world.submit(again)
    world.settle()
    assert world.story.splitlines()[0] == "0: 1@0+10*"
    assert world.of(again).token_ids == alone[4:]
    finished = world.of(again).finished
    assert finished is not None
    assert finished.completion_tokens == 9


@pytest.mark.parametrize(
    ("emitted", "stop", "reason"),
    [(4, False, FinishReason.LENGTH), (2, True, FinishReason.STOP)],
)
def test_a_request_that_had_only_lost_its_end(emitted: int, stop: bool, reason: FinishReason):
    world = World()
    alone, _ = expected(make_request(1, max_tokens=4), world.config)
    stops = (alone[emitted - 1],) if stop else ()
    again = make_request(1, max_tokens=4, emitted=ids(*alone[:emitted]), stop_token_ids=stops)
    world.submit(again)
    world.step(2)
    finished = world.of(again).finished
    assert finished is not None
    assert finished.reason == reason
    assert not world.runner.lines
    world.assert_empty(cached=False)


@both_depths
@pytest.mark.parametrize("how", [Finish, Abort])
def test_pages_are_free_two_steps_after_the_end(overlap: bool, how: type[Finish] | type[Abort]):
    world = World(overlap=overlap)
    request, other = make_request(1, PROMPT[:10], max_tokens=40), make_request(2, PROMPT[3:9], max_tokens=40)
    world.submit(request, other)
    world.step(5)
    before = world.scheduler.statistics().pages_held
    world.post(how(request.key))
    world.step(2)
    statistics = world.scheduler.statistics()
    assert statistics.running == 1
    assert statistics.pages_held < before
    tokens, _ = expected(request, world.config)
    heard = world.of(request)
    assert heard.token_ids == tokens[: len(heard.token_ids)]
    assert heard.finished is not None
    assert heard.finished.reason == (FinishReason.STOP if how is Finish else FinishReason.ABORTED)
    world.settle()
    check_answers(world, other)


def test_a_request_can_leave_before_it_begins_and_half_way_through_its_prompt():
    world = World(max_running=1, chunk=4)
    running, waiting = make_request(1, PROMPT[:14]), make_request(2)
    world.submit(running, waiting)
    world.step(2)
    world.post(Abort(running.key), Abort(waiting.key), Abort(waiting.key))
    world.step(2)
    world.assert_empty()
    assert world.scheduler.statistics().pages_cached == 2, "what was computed stays of use"


@both_depths
def test_a_lost_connection_takes_its_requests_along(overlap: bool):
    world = World(overlap=overlap)
    lost = [make_request(number, PROMPT[:9], client=7, max_tokens=30) for number in range(6)]
    kept = make_request(1, PROMPT[:7], client=8)
    world.submit(*lost, kept)
    world.step(2)
    world.post(ClientGone(7))
    world.step(2)
    assert all(world.of(request).over for request in lost)
    world.settle()
    check_answers(world, kept)
    world.assert_empty()


def test_cached_prefixes_make_room_for_new_requests():
    world = World(pages=8)
    for number in range(6):
        request = make_request(number, np.roll(np.arange(20), number), max_tokens=6)
        world.submit(request)
        world.settle()
        check_answers(world, request)
    world.assert_empty()


def test_a_large_request_is_not_overtaken_for_ever():
    world = World(pages=16, max_running=8, max_waiting=200)
    small = [make_request(number, ids(number, 2, 3), max_tokens=9) for number in range(80)]
    large = make_request(99, np.arange(60), max_tokens=3)
    world.submit(*small[:8])
    world.step(2)
    world.submit(large)
    for request in small[8:]:
        world.submit(request)
        world.step()
    assert world.of(large).over, "it was admitted once those before it had ended"
    world.settle()
    check_answers(world, large, *small)


@both_depths
def test_a_prompt_that_is_computed_twice_is_reported_once(overlap: bool):
    """Its row is taken away half-way, by the pages that an older request needs."""
    world = World(pages=9, chunk=2, overlap=overlap)
    old = make_request(1, PROMPT[:8], max_tokens=16)
    young = make_request(2, PROMPT[:20], salt="a", prompt_logprobs=0)
    world.submit(old)
    world.step(5)
    world.submit(young)
    world.settle()
    assert world.story.count("2@0+2") == 2
    starts = [part.start for part in world.of(young).prompt_logprobs]
    assert starts == sorted(set(starts))
    logprobs = np.concatenate([part.logprobs for part in world.of(young).prompt_logprobs])
    assert logprobs.tolist() == (-(PROMPT[1:20] % 8) / 8).tolist()
    check_answers(world, old, young)


def test_a_page_whose_last_token_never_came_is_not_kept():
    """The request is aborted while its eighth token, the last of the second page, is still being sampled."""
    config = SchedulerConfig(context=32, pages=8, page_size=4, max_running=1)
    scheduler = Scheduler(config)
    runner = ArithmeticRunner(rows=1, columns=8, pages=8, page_size=4, vocab_size=97)
    request = make_request(1, PROMPT[:7])
    scheduler.add(request)
    plans = [scheduler.plan(), scheduler.plan()]
    scheduler.abort(request.key)
    for plan in plans:
        assert plan is not None
        scheduler.advance(runner.collect(runner.launch(plan)))
        scheduler.check_integrity()
    assert scheduler.statistics().pages_cached == 1


def test_the_older_request_gets_the_only_page():
    """At step 4, while the pages of request 4's duplicate prompt still belong to a step in flight."""
    world = World(pages=6, page_size=1, context=12, overlap=True, max_running=3)
    world.step()
    world.submit(make_request(1, [5], max_tokens=1), make_request(2, [5], max_tokens=1))
    world.step()
    world.submit(make_request(3, [5], max_tokens=5), make_request(4, [5], max_tokens=5))
    world.settle()
    assert world.story == story("""
        0: 1@0+1* 2@0+1*
        1: 3@0+1*
        2: 3@1+1* 4@0+1*
        3: 4@1+1* 3@2+1*
        4: 3@3+1*
        5: 3@4+1*
        6: 4@2+1*
        7: 4@3+1*
        8: 4@4+1*
    """)


def test_an_admission_leaves_a_page_for_each_who_runs():
    world = World(pages=24, context=128, max_running=4, max_step_tokens=100)
    running = [make_request(number, ids(number, 7, 7, 7, 7, 7, 7), max_tokens=12) for number in range(3)]
    world.submit(*running)
    world.step(2)
    large = make_request(9, np.arange(4 * 14), max_tokens=4)
    world.submit(large)
    world.step()
    assert "9@0" not in world.story, (
        "14 of the 15 pages left would be fine, were it not for the three who run"
    )
    world.settle()
    assert world.scheduler.statistics().preemptions == 0
    check_answers(world, large, *running)
