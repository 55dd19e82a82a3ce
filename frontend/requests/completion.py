"""One completion: tokens in as the engine makes them, messages out as the client takes them.

    tokens ─▶ detokenizer ─▶ stop matcher ─▶ waiting ─▶ message

Text is made when tokens arrive, so that a stop string ends the work however slowly the client reads; what a
client has not taken waits here, at most `max_tokens` of it, and goes out together.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from frontend.engine.flights import Alternatives
from frontend.text.detokenizer import Detokenizer
from frontend.text.stop_strings import StopMatcher
from lorikeet.v1 import executor_pb2, generation_pb2

NO_FINISH = executor_pb2.ENGINE_FINISH_UNSPECIFIED
ENGINE_STOP = executor_pb2.ENGINE_FINISH_STOP
STOP = generation_pb2.FINISH_REASON_STOP
LENGTH = generation_pb2.FINISH_REASON_LENGTH

# Keeps a message of a client that fell behind well under the 4 MiB that clients accept by default, also with
# 20 alternatives a token.
MAX_TOKENS_A_MESSAGE = 1024


class Completion:
    """Turns one completion's tokens into messages.

    Args:
        index: which of the request's completions this is.
        detokenizer: of this completion alone.
        matcher: finds stop strings; None without any.
        stop_token_ids: the request's own; such a token is never part of the text, while an end-of-sequence
            token is when special tokens are included.
        include_special_tokens: leave special tokens in the text.
        describe_token: the text of a token that ended the completion, for `stop_match`.
    """

    __slots__ = (
        "_alternatives",
        "_describe_token",
        "_detokenizer",
        "_include_special_tokens",
        "_index",
        "_logprobs",
        "_matcher",
        "_stop_match",
        "_stop_token_ids",
        "_texts",
        "_token_ids",
        "completion_tokens",
        "finish_reason",
        "sent_all",
    )

    def __init__(
        self,
        *,
        index: int,
        detokenizer: Detokenizer,
        matcher: StopMatcher | None,
        stop_token_ids: Collection[int],
        include_special_tokens: bool,
        describe_token: Callable[[int], str],
    ) -> None:
        self._index = index
        self._detokenizer = detokenizer
        self._matcher = matcher
        self._stop_token_ids = stop_token_ids
        self._include_special_tokens = include_special_tokens
        self._describe_token = describe_token
        # Waiting for the client: parallel lists, one entry a token; the last two only where asked for.
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[float] = []
        self._alternatives: list[Alternatives | None] = []
        self._stop_match = ""
        self.completion_tokens = 0
        self.finish_reason: generation_pb2.FinishReason = generation_pb2.FINISH_REASON_UNSPECIFIED
        self.sent_all = False
        """True once the message with the finish reason has been taken."""

    def push(
        self,
        token_ids: Sequence[int],
        finish: int,
        logprobs: Sequence[float] | None = None,
        alternatives: Mapping[int, Alternatives] | None = None,
    ) -> bool:
        """Adds the tokens of a step; `alternatives` by position in `token_ids`, `finish` an EngineFinish.

        Returns True where a stop string ended the completion, which the engine cannot know.
        """
        matcher = self._matcher
        last = len(token_ids) - 1 if finish == ENGINE_STOP else -1
        for position, token_id in enumerate(token_ids):
            self.completion_tokens += 1
            self._token_ids.append(token_id)
            if logprobs is not None:
                self._logprobs.append(logprobs[position])
                self._alternatives.append(alternatives.get(position) if alternatives else None)
            ends = position == last
            if ends and (token_id in self._stop_token_ids or not self._include_special_tokens):
                text = ""
            else:
                text = self._detokenizer.step(token_id)
            if matcher is not None:
                text = matcher.feed(text)
                if matcher.match:
                    self._texts.append(text)
                    self._end(STOP, matcher.match)
                    return finish == NO_FINISH
            self._texts.append(text)
        if finish != NO_FINISH:
            self._end_by_engine(finish, token_ids)
        return False

    def _end_by_engine(self, finish: int, token_ids: Sequence[int]) -> None:
        tail = self._detokenizer.flush()
        matcher = self._matcher
        if matcher is not None:
            tail = matcher.feed(tail)
            if matcher.match:
                self._append_tail(tail)
                self._end(STOP, matcher.match)
                return
            tail += matcher.flush()
        self._append_tail(tail)
        if finish == ENGINE_STOP:
            self._end(STOP, self._describe_token(token_ids[-1]) if token_ids else "")
        else:
            self._end(LENGTH, "")

    def _append_tail(self, tail: str) -> None:
        if not tail:
            return
        if self._texts:
            self._texts[-1] += tail
        else:
            # Every token has been taken already: the text goes out with the finish reason.
            self._texts.append(tail)

    def _end(self, reason: generation_pb2.FinishReason, match: str) -> None:
        self.finish_reason = reason
        self._stop_match = match

    def take(self) -> generation_pb2.GenerateResponse | None:
        """The next message with all that waits (or as much as a message may hold); None when nothing does."""
        if self.sent_all or not (self._token_ids or self.finish_reason):
            return None
        token_ids, texts = self._token_ids, self._texts
        if len(token_ids) > MAX_TOKENS_A_MESSAGE:
            return self._take_some(MAX_TOKENS_A_MESSAGE)
        response = generation_pb2.GenerateResponse(
            index=self._index, text=texts[0] if len(texts) == 1 else "".join(texts), token_ids=token_ids
        )
        if self._logprobs:
            _add_logprobs(response, self._logprobs, self._alternatives)
            self._logprobs = []
            self._alternatives = []
        self._token_ids = []
        self._texts = []
        if self.finish_reason:
            response.finish_reason = self.finish_reason
            response.stop_match = self._stop_match
            self.sent_all = True
        return response

    def _take_some(self, count: int) -> generation_pb2.GenerateResponse:
        response = generation_pb2.GenerateResponse(
            index=self._index, text="".join(self._texts[:count]), token_ids=self._token_ids[:count]
        )
        if self._logprobs:
            _add_logprobs(response, self._logprobs[:count], self._alternatives[:count])
        for waiting in (self._token_ids, self._texts, self._logprobs, self._alternatives):
            del waiting[:count]
        return response


def _add_logprobs(
    response: generation_pb2.GenerateResponse,
    logprobs: Sequence[float],
    alternatives: Sequence[Alternatives | None],
) -> None:
    for token_id, logprob, others in zip(response.token_ids, logprobs, alternatives, strict=True):
        entry = response.logprobs.add(token_id=token_id, logprob=logprob)
        if others is not None:
            add_alternatives(entry, *others)


def add_alternatives(
    entry: generation_pb2.TokenLogprobs, ids: Sequence[int], logprobs: Sequence[float]
) -> None:
    """Lists alternatives beside a token's log probability."""
    for token_id, logprob in zip(ids, logprobs, strict=True):
        entry.top.add(token_id=token_id, logprob=logprob)
