"""Outputs of the engine, as messages for one frontend."""

import numpy as np

from executor.control.outputs import Admitted, Failed, Finished, Outputs, PromptLogprobsReady
from executor.control.request import FinishReason
from lorikeet.v1 import executor_pb2 as pb

_ANSWERED = (FinishReason.STOP, FinishReason.LENGTH)
_ENDS = (Finished, Failed)


def encode(share: Outputs) -> pb.ConnectResponse | None:
    """One frontend's share of one step; None when there is nothing that it must hear of.

    A request that ends without a token of this step (its limit was reached by tokens emitted elsewhere) is
    listed with an empty range of tokens.
    """
    requests = share.indexes.tolist()
    splits = share.token_splits.tolist()
    finishes = share.finish_reasons.tolist()
    # The step is filled in place: wrapping it afterwards would copy it.
    response = pb.ConnectResponse()
    step = response.step
    step.step = max(share.step, 0)
    for event in share.events:
        match event:
            case Admitted():
                step.admitted.append(_admitted(event))
            case Failed():
                step.failed.append(_failed(event))
            case PromptLogprobsReady():
                step.prompt_logprobs.append(_prompt_logprobs(event))
            case Finished() if event.reason in _ANSWERED and event.key.index not in requests:
                requests.append(event.key.index)
                splits.append(splits[-1])
                finishes.append(int(event.reason))
            case _:
                pass
    if not requests and not (step.admitted or step.failed or step.prompt_logprobs):
        return None
    step.requests.extend(requests)
    step.token_splits.extend(splits)
    step.token_ids.extend(share.token_ids.tolist())
    step.finishes.extend(finishes)
    if share.wants_logprobs.any():
        step.logprobs.extend(share.logprobs.tolist())
    for token, (ids, logprobs) in share.top.items():
        row = int(np.searchsorted(share.token_splits, token, side="right")) - 1
        step.top_logprobs.add(
            request=requests[row], token=token, ids=ids.tolist(), logprobs=logprobs.tolist()
        )
    return response


def ended(share: Outputs) -> list[int]:
    """The requests, by the frontend's numbers, that end with this share."""
    over = share.indexes[share.finish_reasons.nonzero()].tolist()
    over.extend(event.key.index for event in share.events if isinstance(event, _ENDS))
    return over


def size_of(share: Outputs) -> int:
    """Bytes, about, that a share will take on the wire: cheap, never far below the truth."""
    size = 16 + 12 * len(share.indexes) + 9 * len(share.token_ids)
    for ids, _ in share.top.values():
        size += 16 + 9 * len(ids)
    for event in share.events:
        size += 48
        if isinstance(event, PromptLogprobsReady):
            size += 5 * len(event.logprobs) + 9 * event.top_ids.size
        elif isinstance(event, Failed):
            size += len(event.reason) + len(event.message)
    return size


def _admitted(event: Admitted) -> pb.Admitted:
    return pb.Admitted(
        request=event.key.index,
        cached_tokens=event.cached_tokens,
        queued_us=_microseconds(event.queued_seconds),
        adapter_wait_us=_microseconds(event.slot_wait_seconds + event.load_wait_seconds),
        slot_wait_us=_microseconds(event.slot_wait_seconds),
        load_wait_us=_microseconds(event.load_wait_seconds),
    )


def _failed(event: Failed) -> pb.Failed:
    return pb.Failed(
        request=event.key.index, code=int(event.code), reason=event.reason, message=event.message
    )


def _prompt_logprobs(event: PromptLogprobsReady) -> pb.PromptLogprobs:
    return pb.PromptLogprobs(
        request=event.key.index,
        start=event.start,
        logprobs=event.logprobs.tolist(),
        top=event.top_ids.shape[1],
        top_ids=event.top_ids.ravel().tolist(),
        top_logprobs=event.top_logprobs.ravel().tolist(),
    )


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
