import math
from typing import Any

import grpc
import pytest

from frontend.adapters.references import parse_adapter
from frontend.requests.validation import GeneratePlan, check_text, fit_to_context, plan_generation
from frontend.sampling import SamplingDefaults, completion_seed
from lorikeet.v1 import executor_pb2, generation_pb2
from rpc.errors import LorikeetError

LIMITS = executor_pb2.EngineLimits(context_length=100, vocab_size=300, max_logprobs=10)
DEFAULTS = SamplingDefaults(temperature=0.7, top_k=20)
DIGEST = "0123456789abcdef" * 4


def plan(sampling: dict[str, Any] | None = None, **fields: Any) -> GeneratePlan:
    values: dict[str, Any] = {"text": "x"} | fields
    request = generation_pb2.GenerateRequest(
        **values, sampling=generation_pb2.SamplingParams(**(sampling or {}))
    )
    return plan_generation(request, limits=LIMITS, defaults=DEFAULTS)


def refusal(code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT, **arguments: Any) -> str:
    with pytest.raises(LorikeetError) as caught:
        plan(**arguments)
    assert caught.value.code is code
    return caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 100.5),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", 11.0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.5),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -2.5),
        ("frequency_penalty", -math.inf),
        ("max_tokens", 0),
        ("stop_token_ids", [300]),
        ("stop_token_ids", [1] * 65),
        ("logit_bias", {300: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", dict.fromkeys(range(1025), 0.0)),
    ],
)
def test_an_absurd_sampling_value_is_refused_by_name(field: str, value: Any):
    message = refusal(sampling={field: value})
    assert f"sampling.{field}" in message
    assert "allowed is" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 17),
        ("stop", ["x"] * 17),
        ("stop", ["x", ""]),
        ("stop", ["x" * 257]),
        ("logprobs", 11),
        ("prompt_logprobs", 4_000_000_000),
        ("request_id", "x" * 129),
        ("request_id", "a\nb"),
        ("cache_salt", "x" * 129),
        ("adapter", "x" * 129),
        ("adapter", "b3:123"),
        ("adapter", "b3:" + DIGEST.upper()),
    ],
)
def test_an_absurd_value_is_refused_by_name(field: str, value: Any):
    assert field in refusal(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 1),
        ("session_id", "s"),
        ("response_format", generation_pb2.ResponseFormat()),
        ("tools", [generation_pb2.Tool()]),
    ],
)
def test_fields_kept_for_later_are_refused(field: str, value: Any):
    assert field in refusal(grpc.StatusCode.UNIMPLEMENTED, **{field: value})


def test_a_request_without_a_prompt_is_refused():
    with pytest.raises(LorikeetError, match="no prompt"):
        plan_generation(generation_pb2.GenerateRequest(), limits=LIMITS, defaults=DEFAULTS)


@pytest.mark.parametrize(("field", "value"), [("top_p", 1e-6), ("repetition_penalty", 0.01)])
def test_the_least_value_that_is_named_is_taken(field: str, value: float):
    assert getattr(plan(sampling={field: value}).sampling, field) == pytest.approx(value)


def test_min_tokens_may_not_exceed_max_tokens():
    assert "min_tokens" in refusal(sampling={"min_tokens": 5, "max_tokens": 4})
    assert plan(sampling={"min_tokens": 500}).sampling.max_tokens == 500


def test_unset_fields_take_the_defaults_and_set_ones_do_not():
    sampling = plan().sampling
    assert sampling.temperature == pytest.approx(0.7)
    assert (sampling.top_k, sampling.top_p, sampling.max_tokens) == (20, 1.0, 256)
    sampling = plan(sampling={"temperature": 0.0, "top_k": 0, "max_tokens": 3}).sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.0, 0, 3)


def test_everything_a_request_sets_reaches_the_executor():
    built = plan(
        sampling={
            "min_tokens": 1,
            "top_p": 0.5,
            "min_p": 0.25,
            "repetition_penalty": 1.5,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "seed": 2**64 - 1,
            "stop_token_ids": [7, 8],
            "ignore_eos": True,
            "logit_bias": {9: -100.0, 3: 2.0},
        },
        logprobs=3,
        prompt_logprobs=0,
        n=2,
        stop=["a", "b"],
        cache_salt="salt",
        request_id="mine",
        include_special_tokens=True,
    )
    assert built.sampling == executor_pb2.EngineSampling(
        max_tokens=256,
        min_tokens=1,
        temperature=0.7,
        top_k=20,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=2**64 - 1,
        stop_token_ids=[7, 8],
        ignore_eos=True,
        logit_bias_ids=[3, 9],
        logit_bias_values=[2.0, -100.0],
        logprobs=3,
        prompt_logprobs=0,
    )
    assert (built.completions, built.stop, built.cache_salt) == (2, ("a", "b"), "salt")
    assert (built.request_id, built.include_special_tokens) == ("mine", True)


def test_a_temperature_that_would_overflow_is_greedy_and_top_k_ends_at_the_vocabulary():
    sampling = plan(sampling={"temperature": 1e-30, "top_k": 4_000_000_000}).sampling
    assert (sampling.temperature, sampling.top_k) == (0.0, 300)


def test_without_a_seed_requests_differ():
    assert plan().sampling.seed != plan().sampling.seed
    assert plan(sampling={"seed": 0}).sampling.seed == 0


def test_completions_have_seeds_of_their_own():
    seeds = [completion_seed(5, index) for index in range(16)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 16
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert completion_seed(2**64 - 1, 3) != completion_seed(2**64 - 2, 3)


def test_an_adapter_is_a_name_or_a_pinned_digest():
    assert parse_adapter("team/sql-v2").name == "team/sql-v2"
    assert parse_adapter(f"b3:{DIGEST}").digest == DIGEST
    assert parse_adapter("") == parse_adapter("")


def fit(prompt_ids: list[int], **sampling: Any) -> executor_pb2.EngineSampling:
    message = executor_pb2.EngineSampling(max_tokens=50, **sampling)
    fit_to_context(message, prompt_ids, LIMITS)
    return message


@pytest.mark.parametrize(
    ("prompt_ids", "message"), [([], "no tokens"), ([900] * 100, "at most 99"), ([5, 300, 7], "300")]
)
def test_a_prompt_that_cannot_work_is_refused(prompt_ids: list[int], message: str):
    with pytest.raises(LorikeetError, match=message) as caught:
        fit(prompt_ids)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_max_tokens_is_cut_to_what_the_context_has_left():
    assert fit([1] * 99).max_tokens == 1
    assert fit([1] * 60, min_tokens=45).min_tokens == 40
    assert fit([1] * 10).max_tokens == 50


def test_too_many_prompt_logprobs_for_one_message_are_refused():
    limits = executor_pb2.EngineLimits(context_length=100_000, vocab_size=300, max_logprobs=20)
    with pytest.raises(LorikeetError, match="prompt_logprobs"):
        fit_to_context(executor_pb2.EngineSampling(max_tokens=1, prompt_logprobs=20), [1] * 20_000, limits)


def test_text_is_measured_in_bytes():
    check_text("é" * 50, 100)
    with pytest.raises(LorikeetError, match="100 bytes"):
        check_text("é" * 51, 100)
