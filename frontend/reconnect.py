"""What a frontend's long-lived streams have in common: why one ended, how long to wait before the next."""

import asyncio
import random

import grpc
from google.protobuf.message import DecodeError

from rpc.errors import LorikeetError, from_rpc, unavailable

_FIRST_DELAY_SECONDS = 0.05
_MAX_DELAY_SECONDS = 1.0


class Backoff:
    """Delays that double up to a second, jittered so that many frontends do not come back at once."""

    def __init__(self) -> None:
        self._delay = _FIRST_DELAY_SECONDS

    def reset(self) -> None:
        """The last connection was of use."""
        self._delay = _FIRST_DELAY_SECONDS

    async def wait(self) -> None:
        delay = self._delay
        self._delay = min(delay * 2, _MAX_DELAY_SECONDS)
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - no secret


def why_ended(error: BaseException, peer: str) -> LorikeetError:
    """Reads an exception that ended a stream to `peer`.

    Raises it again where it is this task's own cancellation, or a mistake of ours.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise error
        return closed(peer)  # grpc.aio raises it for a call that ended as cancelled, too
    if isinstance(error, LorikeetError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc(error)
    if isinstance(error, asyncio.InvalidStateError):
        return closed(peer)
    if isinstance(error, TimeoutError):
        return unavailable("PEER_SILENT", f"{peer} did not answer in time")
    if isinstance(error, (ValueError, DecodeError)):
        return unavailable("PEER_MALFORMED", f"{peer} sent a malformed message: {error}")
    raise error


def closed(peer: str) -> LorikeetError:
    return unavailable("PEER_CLOSED", f"{peer} closed the stream")
