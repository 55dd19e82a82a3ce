"""Refusing a client that is still sending."""

import asyncio
import contextlib
from collections.abc import AsyncIterable
from typing import Any

import grpc

from rpc.errors import LorikeetError

_LONGEST_SECONDS = 2.0
_PAUSE_SECONDS = 0.25


async def read_to_end(requests: AsyncIterable[Any]) -> None:
    """Reads and drops what a client goes on to send, until it pauses or has had its time.

    A client of grpc.aio that is answered while it writes may be told "Internal error from Core" and never the
    answer: to be called before an error is raised.
    """
    messages = aiter(requests)
    with contextlib.suppress(TimeoutError, StopAsyncIteration, asyncio.InvalidStateError, grpc.RpcError):
        async with asyncio.timeout(_LONGEST_SECONDS):
            while True:
                async with asyncio.timeout(_PAUSE_SECONDS):
                    # What is refused is refused, whatever else is wrong with it.
                    with contextlib.suppress(LorikeetError):
                        await anext(messages)
