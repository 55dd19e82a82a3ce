"""Decoding of Submit: every field that could hurt is refused by name, and nothing raises."""

import math
from typing import Any

import pytest

from executor.control.outputs import Failed
from executor.control.request import Code, Request, RequestKey
from executor.service.commands import RequestLimits, decode_submit
from lorikeet.v1 import executor_pb2 as pb

LIMITS = RequestLimits(vocab_size=100, context_length=32)
U32 = 2**32 - 1


def sampling(**changes: Any) -> pb.EngineSampling:
    fields: dict[str, Any] = {"max_tokens": 4, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 7}
    return pb.EngineSampling(**{**fields, **changes})


def submit(**changes: Any) -> pb.Submit:
    fields: dict[str, Any] = {"request": 5, "prompt_ids": [1, 2, 3], "sampling": sampling()}
    return pb.Submit(**{**fields, **changes})


def test_a_good_submit_arrives_whole() -> None:
    request = decode_submit(
        submit(
            emitted_ids=[9],
            adapter_digest="a" * 64,
            cache_salt="salt",
            remaining_us=1_500_000,
            sampling=sampling(
                seed=2**64 - 1,
                top_k=50,
                stop_token_ids=[4],
                logit_bias_ids=[8],
                logit_bias_values=[-2.5],
                logprobs=0,
            ),
        ),
        3,
        LIMITS,
    )
    assert isinstance(request, Request)
    assert request.key == RequestKey(3, 5)
    assert request.prompt_ids.tolist() == [1, 2, 3]
    assert request.emitted_ids.tolist() == [9]
    assert (request.digest, request.salt, request.remaining_seconds) == ("a" * 64, "salt", 1.5)
    assert request.sampling.seed == 2**64 - 1
    assert request.sampling.top_k == 50
    assert request.sampling.stop_token_ids == (4,)
    assert request.sampling.logit_bias == ((8, -2.5),)
    assert request.sampling.logprobs == 0
    assert request.sampling.prompt_logprobs is None


def test_huge_but_harmless_numbers_are_brought_into_range() -> None:
    request = decode_submit(
        submit(remaining_us=2**64 - 1, sampling=sampling(max_tokens=U32, min_tokens=U32, top_k=U32)),
        1,
        LIMITS,
    )
    assert isinstance(request, Request)
    assert (request.sampling.max_tokens, request.sampling.min_tokens, request.sampling.top_k) == (32, 32, 0)
    assert request.remaining_seconds is not None
    assert math.isfinite(request.remaining_seconds)


BAD_FIELDS = {
    "no prompt": ({"prompt_ids": []}, "EMPTY_PROMPT"),
    "id beyond the vocabulary": ({"prompt_ids": [1, 100]}, "BAD_TOKEN_ID"),
    "largest id": ({"prompt_ids": [U32]}, "BAD_TOKEN_ID"),
    "emitted id beyond the vocabulary": ({"emitted_ids": [100]}, "BAD_TOKEN_ID"),
    "prompt as long as the context": ({"prompt_ids": [1] * 32}, "PROMPT_TOO_LONG"),
    "emitted past the context": ({"prompt_ids": [1] * 20, "emitted_ids": [1] * 13}, "PROMPT_TOO_LONG"),
    "short digest": ({"adapter_digest": "abc"}, "BAD_DIGEST"),
    "digest with a path": ({"adapter_digest": "../" + "a" * 61}, "BAD_DIGEST"),
    "long salt": ({"cache_salt": "s" * 129}, "BAD_CACHE_SALT"),
}

BAD_SAMPLING = {
    "max_tokens": {"max_tokens": 0},
    "min_tokens": {"min_tokens": 5},
    "NaN temperature": {"temperature": math.nan},
    "infinite temperature": {"temperature": math.inf},
    "negative temperature": {"temperature": -0.1},
    "top_p 0": {"top_p": 0.0},
    "NaN top_p": {"top_p": math.nan},
    "min_p": {"min_p": 1.5},
    "repetition penalty 0": {"repetition_penalty": 0.0},
    "NaN presence penalty": {"presence_penalty": math.nan},
    "frequency penalty": {"frequency_penalty": -3.0},
    "stop ids": {"stop_token_ids": [1] * 65},
    "logprobs": {"logprobs": 21},
    "prompt logprobs": {"prompt_logprobs": U32},
    "bias without a value": {"logit_bias_ids": [1]},
    "NaN bias": {"logit_bias_ids": [1], "logit_bias_values": [math.nan]},
    "infinite bias": {"logit_bias_ids": [1], "logit_bias_values": [-math.inf]},
    "bias twice": {"logit_bias_ids": [1, 1], "logit_bias_values": [1.0, 2.0]},
    "too many biases": {"logit_bias_ids": [1] * 1025, "logit_bias_values": [1.0] * 1025},
}


@pytest.mark.parametrize(("changes", "reason"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_a_bad_field_is_refused(changes: dict[str, Any], reason: str) -> None:
    refused(submit(**changes), reason)


@pytest.mark.parametrize("changes", BAD_SAMPLING.values(), ids=BAD_SAMPLING.keys())
def test_bad_sampling_is_refused(changes: dict[str, Any]) -> None:
    refused(submit(sampling=sampling(**changes)), "BAD_SAMPLING")


@pytest.mark.parametrize("field", ["stop_token_ids", "logit_bias_ids"])
def test_token_ids_in_sampling_are_checked_too(field: str) -> None:
    extra = {"logit_bias_values": [1.0]} if field == "logit_bias_ids" else {}
    refused(submit(sampling=sampling(**{field: [100], **extra})), "BAD_TOKEN_ID")


def test_an_empty_submit_is_refused() -> None:
    refused(pb.Submit(request=5), "EMPTY_PROMPT")


def refused(message: pb.Submit, reason: str) -> None:
    failed = decode_submit(message, 3, LIMITS)
    assert isinstance(failed, Failed)
    assert (failed.key, failed.code, failed.reason) == (RequestKey(3, 5), Code.INVALID_ARGUMENT, reason)
    assert failed.message
