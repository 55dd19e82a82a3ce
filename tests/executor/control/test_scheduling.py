"""What one step computes, as text: see `control_world.Recorder`."""

from __future__ import annotations

import numpy as np
import pytest

from executor.control.config import SchedulerConfig
from executor.control.outputs import Admitted
from executor.control.request import Code, FinishReason
from tests.support.control_world import VOCAB, World, expected, ids, make_request, story

PROMPT = np.arange(10, 30)


def test_a_prompt_then_one_token_a_step():
    world = World()
    request = make_request(1, PROMPT[:5], max_tokens=3)
    world.submit(request)
    world.settle()
    assert world.story == story("""
        0: 1@0+5*
        1: 1@5+1*
        2: 1@6+1*
    """)
    heard = world.of(request)
    assert (heard.token_ids, heard.finish) == expected(request, world.config)
    assert heard.admitted == [Admitted(key=request.key, cached_tokens=0)]
    assert heard.finished is not None
    assert (heard.finished.prompt_tokens, heard.finished.completion_tokens) == (5, 3)
    world.assert_empty()


def test_prompts_fill_what_decoding_leaves_of_the_budget():
    world = World(max_step_tokens=8)
    world.submit(make_request(1, PROMPT[:3], max_tokens=5))
    world.step()
    world.submit(
        make_request(2, PROMPT[:12], salt="a", max_tokens=2),
        make_request(3, PROMPT[:9], salt="b", max_tokens=1),
    )
    world.settle()
    assert world.story == story("""
        0: 1@0+3*
        1: 1@3+1* 2@0+7
        2: 1@4+1* 2@7+5* 3@0+2
        3: 1@5+1* 2@12+1* 3@2+6
        4: 1@6+1* 3@8+1*
    """)


def test_a_chunk_limit_leaves_room_for_others():
    world = World(chunk=4)
    world.submit(
        make_request(1, PROMPT[:9], max_tokens=1), make_request(2, PROMPT[:6], salt="a", max_tokens=1)
    )
    world.settle()
    assert world.story == story("""
        0: 1@0+4 2@0+4
        1: 1@4+4 2@4+2*
        2: 1@8+1*
    """)


def test_an_ended_request_is_computed_once_more_when_steps_overlap():
    world = World(overlap=True, eos_token_ids=tuple(range(VOCAB)))
    request = make_request(1, ignore_eos=False, max_tokens=9)
    world.submit(request)
    world.settle()
    assert world.story == story("""
        0: 1@0+5*
        1: 1@5+1*
    """)
    assert world.of(request).finish == FinishReason.STOP
    assert len(world.of(request).token_ids) == 1
    world.assert_empty()


def test_the_end_by_length_is_foreseen_when_steps_overlap():
    world = World(overlap=True)
    request = make_request(1, max_tokens=3)
    world.submit(request)
    world.settle()
    assert world.story == story("""
        0: 1@0+5*
        1: 1@5+1*
        2: 1@6+1*
    """)
    assert len(world.of(request).token_ids) == 3


@pytest.mark.parametrize("overlap", [False, True])
def test_a_stop_token_is_sent_and_ends_the_request(overlap: bool):
    world = World(overlap=overlap)
    alone, _ = expected(make_request(1, max_tokens=8), world.config)
    request = make_request(1, max_tokens=8, stop_token_ids=(alone[2],))
    world.submit(request)
    world.settle()
    assert world.of(request).token_ids == alone[: alone.index(alone[2]) + 1]
    assert world.of(request).finish == FinishReason.STOP


def test_eos_is_ignored_where_asked_and_stop_ids_of_one_row_do_not_end_another():
    world = World()
    alone, _ = expected(make_request(1, max_tokens=6), world.config)
    world = World(eos_token_ids=(alone[1],))
    ignores, heeds = make_request(1, max_tokens=6), make_request(2, max_tokens=6, ignore_eos=False)
    other = make_request(3, max_tokens=6, stop_token_ids=(alone[3], alone[4]))
    world.submit(ignores, heeds, other)
    world.settle()
    assert world.of(ignores).token_ids == alone
    assert world.of(heeds).token_ids == alone[:2]
    assert world.of(other).token_ids == alone[:4]


@pytest.mark.parametrize("overlap", [False, True])
def test_the_context_ends_a_request(overlap: bool):
    world = World(context=16, overlap=overlap)
    request = make_request(1, PROMPT[:10], max_tokens=100)
    world.submit(request)
    world.settle()
    assert len(world.of(request).token_ids) == 6
    assert world.of(request).finish == FinishReason.LENGTH


def test_the_pages_of_the_whole_executor_end_a_request():
    world = World(pages=4)
    request = make_request(1, PROMPT[:10], max_tokens=100)
    world.submit(request)
    world.settle()
    assert len(world.of(request).token_ids) == 6
    world.assert_empty()


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ({"prompt": ids()}, Code.INVALID_ARGUMENT, "EMPTY_PROMPT"),
        ({"prompt": np.arange(64)}, Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
        ({"prompt": np.arange(40)}, Code.INVALID_ARGUMENT, "PROMPT_EXCEEDS_PAGES"),
        ({"prompt": ids(5, -1)}, Code.INVALID_ARGUMENT, "BAD_TOKEN_ID"),
        ({"emitted": ids(-1)}, Code.INVALID_ARGUMENT, "BAD_TOKEN_ID"),
        ({"stop_token_ids": (2**31,)}, Code.INVALID_ARGUMENT, "BAD_TOKEN_ID"),
        ({"index": 2**63}, Code.INVALID_ARGUMENT, "BAD_REQUEST_NUMBER"),
        ({"max_tokens": 0}, Code.INVALID_ARGUMENT, "BAD_MAX_TOKENS"),
        ({"stop_token_ids": tuple(range(65))}, Code.INVALID_ARGUMENT, "TOO_MANY_STOP_TOKEN_IDS"),
        ({"digest": "a"}, Code.FAILED_PRECONDITION, "ADAPTERS_DISABLED"),
    ],
)
def test_what_can_never_be_served_is_refused(what: dict[str, object], code: Code, reason: str):
    world = World(pages=10)
    request = make_request(**what)  # pyright: ignore[reportArgumentType]
    world.submit(request)
    world.step()
    failed = world.of(request).failed
    assert failed is not None
    assert (failed.code, failed.reason) == (code, reason)
    assert failed.message
    world.assert_empty(cached=False)


def test_a_full_queue_refuses():
    world = World(max_running=1, max_waiting=2)
    requests = [make_request(number) for number in range(4)]
    world.submit(*requests)
    world.step()
    refused = [request.index for request in requests if world.of(request).failed]
    assert refused == [2, 3]
    failed = world.of(requests[3]).failed
    assert failed is not None
    assert failed.code == Code.RESOURCE_EXHAUSTED
    world.settle()
    world.assert_empty()


def test_a_number_in_use_is_refused_and_the_first_request_goes_on():
    world = World()
    request = make_request(1, max_tokens=4)
    world.submit(request)
    world.step()
    world.submit(make_request(1, PROMPT[:4]))
    world.step()
    failed = world.of(request).failed
    assert failed is not None
    assert failed.code == Code.ALREADY_EXISTS
    assert len(world.scheduler) == 1


def test_logprobs_and_alternatives_reach_those_who_asked():
    world = World()
    plain, chosen, top = make_request(1), make_request(2, logprobs=0), make_request(3, logprobs=2)
    world.submit(plain, chosen, top)
    world.settle()
    assert world.published[0].wants_logprobs.tolist() == [False, True, True]
    assert world.of(chosen).logprobs == [-(token % 8) / 8 for token in world.of(chosen).token_ids]
    assert not world.of(chosen).top
    assert [first for (first, _), _ in world.of(top).top] == world.of(top).token_ids


@pytest.mark.parametrize("chunk", [None, 3])
def test_prompt_logprobs_cover_the_prompt_once(chunk: int | None):
    world = World(chunk=chunk)
    request = make_request(1, PROMPT[:11], prompt_logprobs=1)
    world.submit(request)
    world.settle()
    parts = world.of(request).prompt_logprobs
    assert [part.start for part in parts] == ([1] if chunk is None else [1, 4, 7, 10])
    assert np.concatenate([part.logprobs for part in parts]).tolist() == (-(PROMPT[1:11] % 8) / 8).tolist()
    assert np.concatenate([part.top_ids for part in parts])[:, 0].tolist() == PROMPT[1:11].tolist()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pages": 0}, "pages is 0"),
        ({"max_step_tokens": 3}, "room for one token"),
        ({"chunk": 0}, "chunk is 0"),
        ({"queue_policy": "random"}, "fair, pack"),
        ({"adapter_slots": 2}, "go together"),
        ({"slot_quantum": -1}, "slot_quantum is -1"),
    ],
)
def test_settings_that_make_no_sense_are_named(setting: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        SchedulerConfig(**({"context": 16, "pages": 4, "max_running": 4} | setting))  # pyright: ignore[reportArgumentType]
