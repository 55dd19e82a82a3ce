"""Outputs to EngineStep: splits, rarer things, and what is left out."""

import numpy as np

from executor.control.outputs import (
    Admitted,
    Event,
    Failed,
    Finished,
    FirstToken,
    Outputs,
    PromptLogprobsReady,
    only_events,
)
from executor.control.request import Code, FinishReason, RequestKey
from executor.service.encoding import encode, ended, size_of
from lorikeet.v1 import executor_pb2 as pb


def outputs(events: tuple[Event, ...] = (), wants: tuple[bool, ...] = (False, False)) -> Outputs:
    """Requests 7 (tokens 1, 2) and 9 (token 3, ends at its limit) of client 4."""
    return Outputs(
        step=11,
        clients=np.array([4, 4]),
        indexes=np.array([7, 9]),
        token_splits=np.array([0, 2, 3], np.int32),
        token_ids=np.array([1, 2, 3], np.int32),
        logprobs=np.array([-0.5, -0.25, -1.0], np.float32),
        finish_reasons=np.array([FinishReason.NONE, FinishReason.LENGTH], np.uint8),
        wants_logprobs=np.array(wants),
        top={2: (np.array([3, 8], np.int32), np.array([-1.0, -2.0], np.float32))} if wants[1] else {},
        events=events,
    )


def step_of(share: Outputs) -> pb.EngineStep | None:
    response = encode(share)
    return response and response.step


def finished(index: int, reason: FinishReason) -> Finished:
    return Finished(
        key=RequestKey(4, index), reason=reason, prompt_tokens=3, cached_tokens=0, completion_tokens=1
    )


def test_tokens_travel_as_parallel_arrays() -> None:
    step = step_of(outputs((finished(9, FinishReason.LENGTH), FirstToken(key=RequestKey(4, 9)))))
    assert step is not None
    assert step.step == 11
    assert list(step.requests) == [7, 9]
    assert list(step.token_splits) == [0, 2, 3]
    assert list(step.token_ids) == [1, 2, 3]
    assert list(step.finishes) == [0, 2]
    assert not step.logprobs
    assert not step.top_logprobs


def test_logprobs_come_when_one_request_asked() -> None:
    step = step_of(outputs(wants=(False, True)))
    assert step is not None
    assert list(step.logprobs) == [-0.5, -0.25, -1.0]
    (top,) = step.top_logprobs
    assert (top.request, top.token, list(top.ids), list(top.logprobs)) == (9, 2, [3, 8], [-1.0, -2.0])


def test_events_become_messages() -> None:
    key = RequestKey(4, 7)
    step = step_of(
        only_events(
            (
                Admitted(
                    key=key,
                    cached_tokens=16,
                    queued_seconds=0.5,
                    slot_wait_seconds=0.05,
                    load_wait_seconds=0.2,
                ),
                Failed(key=key, code=Code.NOT_FOUND, reason="R", message="m"),
                PromptLogprobsReady(
                    key=key,
                    start=1,
                    logprobs=np.array([-1.0], np.float32),
                    top_ids=np.array([[5, 6]], np.int32),
                    top_logprobs=np.array([[-1.0, -2.0]], np.float32),
                ),
            )
        )
    )
    assert step is not None
    assert step.step == 0
    (admitted,) = step.admitted
    assert (admitted.cached_tokens, admitted.queued_us, admitted.adapter_wait_us) == (16, 500_000, 250_000)
    assert (admitted.slot_wait_us, admitted.load_wait_us) == (50_000, 200_000)
    (failed,) = step.failed
    assert (failed.request, failed.code, failed.reason, failed.message) == (7, 5, "R", "m")
    (chunk,) = step.prompt_logprobs
    assert (chunk.start, chunk.top, list(chunk.top_ids)) == (1, 2, [5, 6])


def test_an_answer_that_ends_without_tokens_has_an_empty_range() -> None:
    step = step_of(outputs((finished(12, FinishReason.STOP),)))
    assert step is not None
    assert list(step.requests) == [7, 9, 12]
    assert list(step.token_splits) == [0, 2, 3, 3]
    assert list(step.finishes) == [0, 2, 1]


def test_what_only_the_frontend_did_is_not_told_back() -> None:
    assert encode(only_events((finished(7, FinishReason.ABORTED), FirstToken(key=RequestKey(4, 7))))) is None


def test_ended_names_all_requests_that_are_over() -> None:
    failed = Failed(key=RequestKey(4, 20), code=Code.INTERNAL, reason="R", message="m")
    share = outputs((failed, finished(9, FinishReason.LENGTH), finished(21, FinishReason.ABORTED)))
    assert set(ended(share)) == {9, 20, 21}


def test_the_estimated_size_is_no_less_than_the_encoded_one() -> None:
    for wants in ((False, False), (True, True)):
        share = outputs(wants=wants)
        step = step_of(share)
        assert step is not None
        assert size_of(share) >= step.ByteSize()
