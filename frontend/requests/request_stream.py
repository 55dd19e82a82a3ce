"""One Generate call on its way to the client: its completions, its timings, and who waits for them."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from frontend.engine.flights import Alternatives
from frontend.requests.completion import Completion, add_alternatives
from frontend.requests.wakeups import Wakeups
from frontend.usage import Usage
from lorikeet.v1 import executor_pb2, generation_pb2
from rpc.errors import LorikeetError


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What responses say about who asked for what. `arrived` is a time of the stream's clock, in seconds."""

    request_id: str
    model: str
    adapter: str
    digest: str
    arrived: float


class PromptLogprobs:
    """Collects the log probabilities of a prompt's tokens: in chunks, some twice if the executor restarts."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._prompt_ids = prompt_ids
        self._logprobs = [math.nan] * len(prompt_ids)
        self._alternatives: list[Alternatives | None] = [None] * len(prompt_ids)
        # The first token has no probability, so a chunk that leaves it out is complete too.
        self._missing = set(range(1, len(prompt_ids)))

    @property
    def complete(self) -> bool:
        return not self._missing

    def add(self, chunk: executor_pb2.PromptLogprobs) -> None:
        """Raises ValueError for a chunk that does not lie within the prompt."""
        count, top = len(chunk.logprobs), chunk.top
        if chunk.start + count > len(self._prompt_ids) or len(chunk.top_ids) != count * top:
            raise ValueError("prompt log probabilities do not fit the prompt")
        for offset, logprob in enumerate(chunk.logprobs):
            position = chunk.start + offset
            self._missing.discard(position)
            self._logprobs[position] = logprob
            if top:
                entries = slice(offset * top, (offset + 1) * top)
                self._alternatives[position] = (chunk.top_ids[entries], chunk.top_logprobs[entries])

    def write_to(self, response: generation_pb2.GenerateResponse) -> None:
        """One entry a prompt token; the first names its token and no probability."""
        for position, token_id in enumerate(self._prompt_ids):
            entry = response.prompt_logprobs.add(token_id=token_id)
            if position:
                entry.logprob = self._logprobs[position]
                if (alternatives := self._alternatives[position]) is not None:
                    add_alternatives(entry, *alternatives)


class RequestStream:
    """Gathers what the engine does for a request and hands it out as messages; one reader, woken once a step.

    The executor's side calls `on_*` (through a `CompletionSink`); the client's side awaits `wait`, takes and
    sends what there is, and waits again. A failure ends the stream: `wait` raises it.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        completions: Sequence[Completion],
        prompt_ids: Sequence[int],
        wants_prompt_logprobs: bool,
        wakeups: Wakeups,
        clock: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._completions = completions
        self._prompt_tokens = len(prompt_ids)
        self._prompt_logprobs = PromptLogprobs(prompt_ids) if wants_prompt_logprobs else None
        self._loop = asyncio.get_running_loop()
        self._wakeups = wakeups
        self._clock = clock
        self._waiter: asyncio.Future[None] | None = None
        self._news = False
        self._error: LorikeetError | None = None
        self._first_taken = False
        self.done = False
        """True once the last message has been taken."""
        self._cached_tokens: int | None = None
        self._queued_us = self._adapter_wait_us = self._first_token_us = 0
        self._without_token = set(range(len(completions)))

    @property
    def begun(self) -> bool:
        """True once any completion has a token."""
        return len(self._without_token) < len(self._completions)

    @property
    def usage(self) -> Usage:
        """What the request came to so far; a failure unless the last message has been taken."""
        return Usage(
            requests=1,
            failures=0 if self.done else 1,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=sum(completion.completion_tokens for completion in self._completions),
        )

    @property
    def first_token_seconds(self) -> float | None:
        """From arrival until each completion had a token; None while one has none."""
        return None if self._without_token else self._first_token_us / 1e6

    async def wait(self) -> None:
        """Returns when there is news and this stream's turn. Raises the error that ended the request."""
        waiter = self._waiter = self._loop.create_future()
        if self._news:
            self._wakeups.add(waiter)
        try:
            await waiter
        finally:
            self._waiter = None
        self._news = False
        if self._error is not None:
            raise self._error

    def take(self) -> list[generation_pb2.GenerateResponse]:
        """All messages for the client that there are now."""
        if not self._first_taken and self._prompt_logprobs is not None and not self._prompt_logprobs.complete:
            return []
        responses: list[generation_pb2.GenerateResponse] = []
        for completion in self._completions:
            while (response := completion.take()) is not None:
                responses.append(response)
        if responses:
            if not self._first_taken:
                self._complete_first(responses[0])
            if responses[-1].finish_reason and all(each.sent_all for each in self._completions):
                self.done = True
                responses[-1].summary.CopyFrom(self._summary())
        return responses

    def _complete_first(self, response: generation_pb2.GenerateResponse) -> None:
        self._first_taken = True
        response.adapter_digest = self._identity.digest
        if self._prompt_logprobs is not None:
            self._prompt_logprobs.write_to(response)

    def on_tokens(
        self,
        index: int,
        token_ids: Sequence[int],
        finish: int,
        logprobs: Sequence[float] | None,
        alternatives: Mapping[int, Alternatives] | None,
    ) -> bool:
        """Adds a step's tokens; returns True where a stop string ended the completion."""
        if index in self._without_token:
            self._without_token.discard(index)
            self._first_token_us = max(self._first_token_us, self._since_arrival_us())
        ended = self._completions[index].push(token_ids, finish, logprobs, alternatives)
        self._wake()
        return ended

    def on_admitted(self, admitted: executor_pb2.Admitted, submitted: float) -> None:
        """The completion's first step began; `submitted` is when it was sent to the executor."""
        # What one completion has computed is cached for the next: the least is what was there before.
        if self._cached_tokens is None or admitted.cached_tokens < self._cached_tokens:
            self._cached_tokens = admitted.cached_tokens
        before = round((submitted - self._identity.arrived) * 1e6)
        self._queued_us = max(self._queued_us, before + admitted.queued_us)
        self._adapter_wait_us = max(self._adapter_wait_us, admitted.adapter_wait_us)

    def on_prompt_logprobs(self, chunk: executor_pb2.PromptLogprobs) -> None:
        if self._prompt_logprobs is not None:
            self._prompt_logprobs.add(chunk)
            self._wake()

    def on_failed(self, error: LorikeetError) -> None:
        """Ends the request; of several failures the first counts."""
        if self._error is None:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if not self._news:
            self._news = True
            if self._waiter is not None:
                self._wakeups.add(self._waiter)

    def _since_arrival_us(self) -> int:
        return round((self._clock() - self._identity.arrived) * 1e6)

    def _summary(self) -> generation_pb2.Summary:
        identity = self._identity
        return generation_pb2.Summary(
            request_id=identity.request_id,
            model=identity.model,
            adapter=identity.adapter,
            adapter_digest=identity.digest,
            usage=generation_pb2.Usage(
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens or 0,
                completion_tokens=sum(completion.completion_tokens for completion in self._completions),
            ),
            timings=generation_pb2.Timings(
                queued_us=self._queued_us,
                adapter_wait_us=self._adapter_wait_us,
                first_token_us=self._first_token_us,
                total_us=self._since_arrival_us(),
            ),
        )
