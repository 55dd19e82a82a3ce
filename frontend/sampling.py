"""Sampling parameters: their ranges, their defaults, and the complete set that an executor is sent."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frontend.fields import check_token_ids, out_of_range
from lorikeet.v1 import executor_pb2, generation_pb2

DEFAULT_MAX_TOKENS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
# Below this the quotient of logits and temperature may overflow, and its limit is greedy anyway.
MIN_TEMPERATURE = 1e-4

_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_LOGIT_BIAS_RANGE = (-100.0, 100.0)
_UINT32_MAX = (1 << 32) - 1


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """Values of the fields that a request leaves unset. `max_tokens` is in tokens."""

    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> "SamplingDefaults":
        """Reads what a checkpoint's generation_config.json sets.

        `do_sample: false`, where it is spelled out, means greedy. Raises ValueError for a value out of range.
        """
        values: dict[str, Any] = {}
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            if config.get(name) is not None:
                least, most = _RANGES[name]
                values[name] = _number(name, config[name])
                if not least <= values[name] <= most:
                    raise ValueError(f"{name} is {values[name]}: it must lie in {least:g} to {most:g}")
        for name, key in (("top_k", "top_k"), ("max_tokens", "max_new_tokens")):
            if config.get(key) is not None:
                values[name] = int(_number(key, config[key]))
                least = 0 if name == "top_k" else 1
                if not least <= values[name] <= _UINT32_MAX:
                    raise ValueError(f"{key} is {values[name]}: it must lie in {least} to {_UINT32_MAX}")
        if config.get("do_sample") is False:
            values["temperature"] = 0.0
        return cls(**values)

    def to_proto(self) -> generation_pb2.SamplingParams:
        return generation_pb2.SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}: it must be a number")
    return value


def complete_sampling(
    params: generation_pb2.SamplingParams, *, defaults: SamplingDefaults, vocab_size: int
) -> executor_pb2.EngineSampling:
    """Checks a request's sampling parameters and fills in the unset ones.

    Left open for the caller: `seed` where the request has none, `logprobs`, and the share of `max_tokens`
    that the context has room for. A temperature below 1e-4 becomes 0. Raises INVALID_ARGUMENT, naming the
    field, its value and what is allowed.
    """
    if params.HasField("max_tokens") and params.max_tokens < 1:
        raise out_of_range("sampling.max_tokens", params.max_tokens, "at least 1")
    if params.HasField("max_tokens"):
        max_tokens = params.max_tokens
        if params.min_tokens > max_tokens:
            raise out_of_range("sampling.min_tokens", params.min_tokens, f"at most max_tokens, {max_tokens}")
    else:
        max_tokens = max(defaults.max_tokens, params.min_tokens)
    sampling = executor_pb2.EngineSampling(
        max_tokens=max_tokens,
        min_tokens=params.min_tokens,
        top_k=min(params.top_k if params.HasField("top_k") else defaults.top_k, vocab_size),
        seed=params.seed,
        ignore_eos=params.ignore_eos,
    )
    for name, (least, most) in _RANGES.items():
        explicit = name in ("presence_penalty", "frequency_penalty") or params.HasField(name)
        value = getattr(params, name) if explicit else getattr(defaults, name)
        # Written so that NaN fails as well. The message's floats are single: 0.01 arrives as 0.00999999978.
        if not _single(least) <= value <= most:
            raise out_of_range(f"sampling.{name}", value, f"{least:g} to {most:g}")
        setattr(sampling, name, value)
    if sampling.temperature < MIN_TEMPERATURE:
        sampling.temperature = 0.0
    _check_stop_token_ids(params, vocab_size)
    sampling.stop_token_ids.extend(params.stop_token_ids)
    _add_logit_bias(sampling, params.logit_bias, vocab_size)
    return sampling


def _single(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def _check_stop_token_ids(params: generation_pb2.SamplingParams, vocab_size: int) -> None:
    if len(params.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise out_of_range(
            "sampling.stop_token_ids", f"{len(params.stop_token_ids)} ids", f"at most {MAX_STOP_TOKEN_IDS}"
        )
    check_token_ids("sampling.stop_token_ids", params.stop_token_ids, vocab_size)


def _add_logit_bias(
    sampling: executor_pb2.EngineSampling, logit_bias: Mapping[int, float], vocab_size: int
) -> None:
    if len(logit_bias) > MAX_LOGIT_BIAS:
        raise out_of_range("sampling.logit_bias", f"{len(logit_bias)} entries", f"at most {MAX_LOGIT_BIAS}")
    check_token_ids("sampling.logit_bias", logit_bias.keys(), vocab_size)
    least, most = _LOGIT_BIAS_RANGE
    for token_id, bias in sorted(logit_bias.items()):
        if not least <= bias <= most:
            raise out_of_range(f"sampling.logit_bias[{token_id}]", bias, f"{least:g} to {most:g}")
        sampling.logit_bias_ids.append(token_id)
        sampling.logit_bias_values.append(bias)


def completion_seed(seed: int, index: int) -> int:
    """The seed of a request's completion `index` (0 to n - 1).

    Completion 0 takes the request's seed itself, so that n = 1 and the first of n agree; the others take
    SplitMix64 (Steele, Lea, Flood 2014) of seed + index * 0x9E3779B97F4A7C15, all modulo 2**64.
    """
    if index == 0:
        return seed
    mask = (1 << 64) - 1
    mixed = (seed + index * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)
