"""Decides whether a request can work at all, before anything is computed for it. Pure."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from frontend.adapters.references import AdapterRef, parse_adapter
from frontend.fields import check_token_ids, checked_id, out_of_range
from frontend.sampling import SamplingDefaults, complete_sampling
from lorikeet.v1 import executor_pb2, generation_pb2
from rpc.errors import invalid_argument, unimplemented

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_COMPLETIONS = 16
MAX_CHAT_MESSAGES = 4096
MAX_LOGPROBS = 20
# As one message holds them all, and clients receive at most 4 MiB by default.
MAX_PROMPT_LOGPROBS = 250_000

_KEPT_FOR_LATER = ("priority", "session_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratePlan:
    """A checked request. `sampling` still has to `fit_to_context`; its seed is that of completion 0."""

    request_id: str
    adapter: AdapterRef
    sampling: executor_pb2.EngineSampling
    stop: tuple[str, ...]
    completions: int
    include_special_tokens: bool
    cache_salt: str


def plan_generation(
    request: generation_pb2.GenerateRequest,
    *,
    limits: executor_pb2.EngineLimits,
    defaults: SamplingDefaults,
) -> GeneratePlan:
    """Checks everything but the prompt.

    Raises INVALID_ARGUMENT, naming field, value and what is allowed, and UNIMPLEMENTED for fields kept for
    later.
    """
    _refuse_kept_for_later(request)
    if request.WhichOneof("prompt") is None:
        raise invalid_argument("PROMPT_MISSING", "the request has no prompt: set text, chat or tokens")
    sampling = complete_sampling(request.sampling, defaults=defaults, vocab_size=limits.vocab_size)
    if not request.sampling.HasField("seed"):
        sampling.seed = secrets.randbits(64)
    _set_logprobs(sampling, request, limits)
    if request.n > MAX_COMPLETIONS:
        raise out_of_range("n", request.n, f"1 to {MAX_COMPLETIONS}")
    return GeneratePlan(
        request_id=checked_id("request_id", request.request_id) or secrets.token_hex(8),
        adapter=parse_adapter(request.adapter),
        sampling=sampling,
        stop=_checked_stop(request.stop),
        completions=request.n or 1,
        include_special_tokens=request.include_special_tokens,
        cache_salt=checked_id("cache_salt", request.cache_salt),
    )


def fit_to_context(
    sampling: executor_pb2.EngineSampling, prompt_ids: Sequence[int], limits: executor_pb2.EngineLimits
) -> None:
    """Checks the prompt's ids and cuts max_tokens to what the context has left.

    An explicit max_tokens past the context is cut as well: the completion then ends with LENGTH, as it would
    at the end of the context. Raises INVALID_ARGUMENT.
    """
    if not prompt_ids:
        raise invalid_argument("PROMPT_EMPTY", "the prompt has no tokens: send at least one")
    check_length(len(prompt_ids), limits.context_length)
    check_token_ids("the prompt", prompt_ids, limits.vocab_size)
    if sampling.HasField("prompt_logprobs"):
        entries = len(prompt_ids) * (1 + sampling.prompt_logprobs)
        if entries > MAX_PROMPT_LOGPROBS:
            raise out_of_range(
                "prompt_logprobs",
                f"{sampling.prompt_logprobs} for {len(prompt_ids)} prompt tokens",
                f"at most {MAX_PROMPT_LOGPROBS} probabilities in all; ask for fewer alternatives",
            )
    sampling.max_tokens = min(sampling.max_tokens, limits.context_length - len(prompt_ids))
    sampling.min_tokens = min(sampling.min_tokens, sampling.max_tokens)


def check_length(tokens: int, context_length: int, *, is_least: bool = False) -> None:
    """Checks a prompt's length, or with `is_least` what it is at least. Raises INVALID_ARGUMENT."""
    if tokens >= context_length:
        least = "at least " if is_least else ""
        raise invalid_argument(
            "PROMPT_TOO_LONG",
            f"the prompt has {least}{tokens} tokens: at most {context_length - 1} fit into the context of "
            f"{context_length} with room for one more; shorten it",
            prompt_tokens=str(tokens),
            context_length=str(context_length),
        )


def check_text(text: str, max_bytes: int) -> None:
    """Checks a prompt's text, plain or rendered. Raises INVALID_ARGUMENT."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair, which no tokenizer takes.
        raise invalid_argument(
            "PROMPT_NOT_UNICODE",
            f"the prompt holds half a surrogate pair at character {error.start}: remove it",
        ) from error
    if size > max_bytes:
        raise invalid_argument("PROMPT_TOO_LARGE", f"the prompt is over {max_bytes} bytes: shorten it")


def check_chat(chat: generation_pb2.ChatPrompt) -> None:
    """Checks what every template relies on. Raises INVALID_ARGUMENT."""
    if not chat.messages:
        raise invalid_argument("CHAT_EMPTY", "chat.messages is empty: send at least one message")
    if len(chat.messages) > MAX_CHAT_MESSAGES:
        raise out_of_range("chat.messages", f"{len(chat.messages)} long", f"at most {MAX_CHAT_MESSAGES}")
    for index, message in enumerate(chat.messages):
        if not message.role:
            raise invalid_argument(
                "CHAT_ROLE_MISSING",
                f'chat.messages[{index}] has no role: usually "system", "user" or "assistant"',
            )


def _refuse_kept_for_later(request: generation_pb2.GenerateRequest) -> None:
    fields = [name for name in _KEPT_FOR_LATER if getattr(request, name)]
    fields += ["response_format"] if request.HasField("response_format") else []
    fields += ["tools"] if request.tools else []
    if fields:
        raise unimplemented(
            "FIELD_NOT_SUPPORTED",
            f"{', '.join(fields)} cannot be used yet: leave it unset",
            fields=",".join(fields),
        )


def _set_logprobs(
    sampling: executor_pb2.EngineSampling,
    request: generation_pb2.GenerateRequest,
    limits: executor_pb2.EngineLimits,
) -> None:
    most = min(MAX_LOGPROBS, limits.max_logprobs)
    for name in ("logprobs", "prompt_logprobs"):
        if request.HasField(name):
            value = getattr(request, name)
            if value > most:
                raise out_of_range(name, value, f"0 to {most}")
            setattr(sampling, name, value)


def _checked_stop(stop: Sequence[str]) -> tuple[str, ...]:
    if len(stop) > MAX_STOP_STRINGS:
        raise out_of_range("stop", f"{len(stop)} strings", f"at most {MAX_STOP_STRINGS}")
    for index, string in enumerate(stop):
        if not 1 <= len(string) <= MAX_STOP_CHARACTERS:
            raise out_of_range(
                f"stop[{index}]", f"{len(string)} characters long", f"1 to {MAX_STOP_CHARACTERS} characters"
            )
    return tuple(stop)
