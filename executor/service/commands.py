"""A frontend's commands, checked: what goes on from here can be computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from executor.control.outputs import Failed
from executor.control.request import (
    MAX_STOP_TOKEN_IDS,
    Code,
    Int32Array,
    Request,
    RequestKey,
    SamplingParams,
    no_ids,
)
from lorikeet.v1 import executor_pb2 as pb
from rpc.digests import is_digest

MAX_LOGPROBS = 20
_MAX_SALT = 128
_MAX_BIASES = 1024
_MAX_BIAS = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a request may ask for at most."""

    vocab_size: int
    context_length: int
    max_logprobs: int = MAX_LOGPROBS


class RefusedError(Exception):
    """A request can never work as it is written."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def decode_submit(submit: pb.Submit, client: int, limits: RequestLimits) -> Request | Failed:
    """The request, or why it is refused (INVALID_ARGUMENT)."""
    try:
        return _request(submit, client, limits)
    except RefusedError as error:
        return Failed(
            key=RequestKey(client, submit.request),
            code=Code.INVALID_ARGUMENT,
            reason=error.reason,
            message=error.message,
        )


def _request(submit: pb.Submit, client: int, limits: RequestLimits) -> Request:
    prompt_ids = _token_ids("prompt_ids", submit.prompt_ids, limits)
    emitted_ids = _token_ids("emitted_ids", submit.emitted_ids, limits)
    if not len(prompt_ids):
        raise RefusedError("EMPTY_PROMPT", "the prompt has no tokens: send at least one")
    length = len(prompt_ids) + len(emitted_ids)
    if len(prompt_ids) >= limits.context_length or length > limits.context_length:
        raise RefusedError(
            "PROMPT_TOO_LONG",
            f"{length} tokens leave no room in a context of {limits.context_length}: shorten the prompt",
        )
    if submit.adapter_digest and not is_digest(submit.adapter_digest):
        raise RefusedError("BAD_DIGEST", "adapter_digest must be empty or 64 lower-case hex digits")
    if len(submit.cache_salt) > _MAX_SALT:
        raise RefusedError("BAD_CACHE_SALT", f"cache_salt may have at most {_MAX_SALT} characters")
    return Request(
        client=client,
        index=submit.request,
        prompt_ids=prompt_ids,
        emitted_ids=emitted_ids,
        sampling=_sampling(submit.sampling, limits),
        digest=submit.adapter_digest,
        salt=submit.cache_salt,
        remaining_seconds=submit.remaining_us / 1e6 if submit.remaining_us else None,
    )


def _sampling(sampling: pb.EngineSampling, limits: RequestLimits) -> SamplingParams:
    _within("max_tokens", sampling.max_tokens, 1, 2**32 - 1)
    _within("min_tokens", sampling.min_tokens, 0, sampling.max_tokens)
    _within("temperature", sampling.temperature, 0, 100)
    _within("top_p", sampling.top_p, 0, 1, open_below=True)
    _within("min_p", sampling.min_p, 0, 1)
    _within("repetition_penalty", sampling.repetition_penalty, 0, 10, open_below=True)
    _within("presence_penalty", sampling.presence_penalty, -2, 2)
    _within("frequency_penalty", sampling.frequency_penalty, -2, 2)
    logprobs = sampling.logprobs if sampling.HasField("logprobs") else None
    prompt_logprobs = sampling.prompt_logprobs if sampling.HasField("prompt_logprobs") else None
    _within("logprobs", logprobs or 0, 0, limits.max_logprobs)
    _within("prompt_logprobs", prompt_logprobs or 0, 0, limits.max_logprobs)
    return SamplingParams(
        # No request outlives its context, and small numbers cannot overflow in what counts them.
        max_tokens=min(sampling.max_tokens, limits.context_length),
        min_tokens=min(sampling.min_tokens, limits.context_length),
        temperature=sampling.temperature,
        top_k=sampling.top_k if sampling.top_k < limits.vocab_size else 0,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        stop_token_ids=_stop_token_ids(sampling, limits),
        ignore_eos=sampling.ignore_eos,
        logit_bias=_logit_bias(sampling, limits),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _stop_token_ids(sampling: pb.EngineSampling, limits: RequestLimits) -> tuple[int, ...]:
    if not sampling.stop_token_ids:
        return ()
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise RefusedError("BAD_SAMPLING", f"at most {MAX_STOP_TOKEN_IDS} stop_token_ids are allowed")
    return tuple(_token_ids("stop_token_ids", sampling.stop_token_ids, limits).tolist())


def _logit_bias(sampling: pb.EngineSampling, limits: RequestLimits) -> tuple[tuple[int, float], ...]:
    ids, values = sampling.logit_bias_ids, sampling.logit_bias_values
    if not (ids or values):
        return ()
    if len(ids) != len(values):
        raise RefusedError("BAD_SAMPLING", "logit_bias needs as many values as ids")
    if len(ids) > _MAX_BIASES:
        raise RefusedError("BAD_SAMPLING", f"logit_bias may have at most {_MAX_BIASES} entries")
    for value in values:
        _within("a logit_bias", value, -_MAX_BIAS, _MAX_BIAS)
    checked = _token_ids("logit_bias_ids", ids, limits).tolist()
    if len(set(checked)) != len(checked):
        raise RefusedError("BAD_SAMPLING", "logit_bias names a token id twice")
    return tuple(zip(checked, values, strict=True))


def _token_ids(name: str, ids: Sequence[int], limits: RequestLimits) -> Int32Array:
    if not ids:
        return no_ids()
    wide = np.fromiter(ids, np.int64, len(ids))
    largest = wide[wide.argmax()]  # `max` takes thrice as long
    if largest >= limits.vocab_size:
        raise RefusedError(
            "BAD_TOKEN_ID",
            f"{name} holds {largest}: token ids of this model are 0 to {limits.vocab_size - 1}",
        )
    return wide.astype(np.int32)


def _within(name: str, value: float, least: float, most: float, *, open_below: bool = False) -> None:
    if not least <= value <= most or (open_below and value == least):  # so is what is no number
        above = "above " if open_below else ""
        raise RefusedError("BAD_SAMPLING", f"{name} is {value:g}: choose from {above}{least:g} to {most:g}")
