"""Requests that cannot be served here, whatever the load."""

from __future__ import annotations

from executor.control.config import SchedulerConfig
from executor.control.outputs import Failed
from executor.control.request import BASE_DIGEST, MAX_STOP_TOKEN_IDS, Code, Request

_INT32, _INT64 = 2**31, 2**63


def refusal(request: Request, config: SchedulerConfig) -> Failed | None:
    """Returns why a request is refused, or None."""
    prompt, sampling = len(request.prompt_ids), request.sampling
    code = Code.INVALID_ARGUMENT
    if prompt == 0:
        reason, message = "EMPTY_PROMPT", "the prompt has no tokens: send at least one"
    elif prompt >= config.context:
        reason = "PROMPT_TOO_LONG"
        message = f"the prompt has {prompt} tokens, the context {config.context}, answer included: shorten it"
    elif prompt >= config.longest:
        reason = "PROMPT_EXCEEDS_PAGES"
        held = f"the KV pages of this executor hold {config.longest}, an answer included"
        message = f"the prompt has {prompt} tokens, {held}: shorten it, or give the executor more pages"
    elif not 0 <= request.index < _INT64:
        reason, message = (
            "BAD_REQUEST_NUMBER",
            f"request number {request.index} does not fit 63 bits: count from 0",
        )
    elif request.prompt_ids.min() < 0 or (len(request.emitted_ids) and request.emitted_ids.min() < 0):
        reason, message = (
            "BAD_TOKEN_ID",
            "a token id is negative or does not fit 31 bits: send ids of the vocabulary",
        )
    elif not all(0 <= token_id < _INT32 for token_id in sampling.stop_token_ids):
        reason, message = "BAD_TOKEN_ID", "a stop token id does not fit 31 bits: send ids of the vocabulary"
    elif sampling.max_tokens < 1:
        reason, message = "BAD_MAX_TOKENS", f"max_tokens is {sampling.max_tokens}: it must be at least 1"
    elif len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        reason = "TOO_MANY_STOP_TOKEN_IDS"
        message = f"{len(sampling.stop_token_ids)} stop token ids: at most {MAX_STOP_TOKEN_IDS} are allowed"
    elif request.digest != BASE_DIGEST and not config.adapter_slots:
        code, reason = Code.FAILED_PRECONDITION, "ADAPTERS_DISABLED"
        message = "this executor was started without adapter slots: start it with some, or use the base model"
    else:
        return None
    return Failed(key=request.key, code=code, reason=reason, message=message)
