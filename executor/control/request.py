"""What a client asks for: one frozen request, as it came off the wire and was checked there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]

MAX_STOP_TOKEN_IDS = 64
BASE_DIGEST = ""


class RequestKey(NamedTuple):
    """Names a request: the frontend's connection and the frontend's own number for it; never reused."""

    client: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]


class Namespace(NamedTuple):
    """Root of a prefix tree. Requests of different namespaces never share KV pages."""

    digest: str
    salt: str


class FinishReason(IntEnum):
    """Why a request ended; the first three values travel on the wire as they are."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORTED = 3
    FAILED = 4


class Code(IntEnum):
    """The canonical codes (`google.rpc.Code`) that the control plane reports."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a request's tokens are chosen.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off. `logprobs` and `prompt_logprobs`: None
    for none, 0 for those of the tokens themselves, k for the k most probable ones beside them.
    `stop_token_ids` holds at most 64 ids.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


def no_ids() -> Int32Array:
    return np.empty(0, np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One request as submitted.

    `prompt_ids` is int32[P]; `emitted_ids` is int32[E], tokens that an earlier executor has already sent to
    the client: they count as output and are not sent again. `digest` is empty for the base model.
    `remaining_seconds` is what is left until the client's deadline, or None.
    """

    client: int
    index: int
    prompt_ids: Int32Array
    sampling: SamplingParams
    emitted_ids: Int32Array
    digest: str = BASE_DIGEST
    salt: str = ""
    remaining_seconds: float | None = None

    @property
    def key(self) -> RequestKey:
        return RequestKey(self.client, self.index)

    @property
    def namespace(self) -> Namespace:
        return Namespace(self.digest, self.salt)
