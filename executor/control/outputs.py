"""What the engine publishes: the tokens of one step as parallel arrays, rarer things as small objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from executor.control.request import BASE_DIGEST, Code, FinishReason, Float32Array, Int32Array, RequestKey

NO_STEP = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The request's first step begins.

    queued_seconds is from submission. Of those, slot_wait_seconds went by before its adapter had a slot and
    room in the pool, load_wait_seconds while the weights were on their way; the rest it waited for its turn
    and for KV pages. was_resident: the adapter was there when the request came.
    """

    key: RequestKey
    cached_tokens: int
    digest: str = BASE_DIGEST
    was_resident: bool = True
    queued_seconds: float = 0.0
    slot_wait_seconds: float = 0.0
    load_wait_seconds: float = 0.0

    @property
    def queue_wait_seconds(self) -> float:
        return self.queued_seconds - self.slot_wait_seconds - self.load_wait_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The request is over, whoever ended it. first_token_seconds is from submission, 0 without a token."""

    key: RequestKey
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request ended without an answer, whether or not it had begun. No Finished follows."""

    key: RequestKey
    code: Code
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptLogprobsReady:
    """Log probabilities of prompt tokens [start, start + n); shapes as in `plan.PromptLogprobs`."""

    key: RequestKey
    start: int
    logprobs: Float32Array
    top_ids: Int32Array
    top_logprobs: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """The request's first token is among this step's. Marks a moment for timings; nothing to send."""

    key: RequestKey


Event = Admitted | Finished | Failed | PromptLogprobsReady | FirstToken


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outputs:
    """The tokens of one step and the events since the last one.

    clients, indexes int64[N]: the requests that got tokens. token_splits int32[N + 1]: offsets into
    token_ids int32[M] and logprobs float32[M]. finish_reasons uint8[N]: values of FinishReason, NONE where
    the request goes on. top: by offset into token_ids, alternatives (ids int32[k], logprobs float32[k])
    where asked for. wants_logprobs bool[N]: the request asked for logprobs. step is -1 when events came
    without a step.
    """

    step: int
    clients: NDArray[np.int64]
    indexes: NDArray[np.int64]
    token_splits: Int32Array
    token_ids: Int32Array
    logprobs: Float32Array
    finish_reasons: NDArray[np.uint8]
    wants_logprobs: NDArray[np.bool_]
    top: Mapping[int, tuple[Int32Array, Float32Array]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()

    def __bool__(self) -> bool:
        return bool(len(self.indexes) or self.events)

    def by_client(self) -> Iterator[tuple[int, Outputs]]:
        """Yields each client with its own share; the whole, uncopied, where there is only one."""
        clients = {event.key.client for event in self.events} | set(self.clients.tolist())
        if len(clients) == 1:
            yield clients.pop(), self
            return
        for client in sorted(clients):
            yield client, self._of(client)

    def _of(self, client: int) -> Outputs:
        mine = np.flatnonzero(self.clients == client)
        counts = np.diff(self.token_splits)
        taken = np.flatnonzero(np.repeat(self.clients == client, counts))
        return replace(
            self,
            clients=self.clients[mine],
            indexes=self.indexes[mine],
            token_splits=np.concatenate(([0], np.cumsum(counts[mine]))).astype(np.int32),
            token_ids=self.token_ids[taken],
            logprobs=self.logprobs[taken],
            finish_reasons=self.finish_reasons[mine],
            wants_logprobs=self.wants_logprobs[mine],
            top={new: self.top[old] for new, old in enumerate(taken.tolist()) if old in self.top},
            events=tuple(event for event in self.events if event.key.client == client),
        )


_NOTHING = Outputs(
    step=NO_STEP,
    clients=np.empty(0, np.int64),
    indexes=np.empty(0, np.int64),
    token_splits=np.zeros(1, np.int32),
    token_ids=np.empty(0, np.int32),
    logprobs=np.empty(0, np.float32),
    finish_reasons=np.empty(0, np.uint8),
    wants_logprobs=np.empty(0, np.bool_),
)


def only_events(events: tuple[Event, ...]) -> Outputs:
    """Outputs without tokens, for what happens between steps."""
    return replace(_NOTHING, events=events) if events else _NOTHING
