"""Streams: bounded queues towards the peer, and one place that ends both directions together."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar

from rpc.errors import LorikeetError, resource_exhausted

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Outgoing(Protocol[T_co]):
    """What a stream sends: `next` waits for a message, and answers None or raises at the end."""

    async def next(self) -> T_co | None: ...

    def close(self, error: LorikeetError | None = None) -> None:
        """Ends it; the first call counts. Messages that wait are dropped when there is an error."""
        ...


class Outbox(Generic[T]):
    """A bounded queue of messages. A peer that lets it overflow is cut off with RESOURCE_EXHAUSTED."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[T] = deque()
        self._wake = asyncio.Event()
        self._closed = False
        self._error: LorikeetError | None = None

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_closed(self) -> bool:
        return self._closed

    def put(self, message: T, *, droppable: bool = False) -> None:
        """Queues a message. A droppable one is left out once the queue is half full."""
        if self._closed or (droppable and len(self._messages) >= self._limit // 2):
            return
        if len(self._messages) >= self._limit:
            self.close(fell_behind())
            return
        self._messages.append(message)
        self._wake.set()

    async def next(self) -> T | None:
        while not self._messages and not self._closed:
            self._wake.clear()
            await self._wake.wait()
        if self._error is not None:
            raise self._error
        return self._messages.popleft() if self._messages else None

    def take(self) -> T | None:
        """What waits, without waiting for it."""
        return self._messages.popleft() if self._messages and self._error is None else None

    def close(self, error: LorikeetError | None = None) -> None:
        if not self._closed:
            self._closed, self._error = True, error
            self._wake.set()


def fell_behind() -> LorikeetError:
    return resource_exhausted(
        "FELL_BEHIND", "this stream was not read fast enough: open it again", retry_after=0.1
    )


async def converse(
    *,
    requests: AsyncIterator[Any],
    receive: Callable[[Any], None],
    outgoing: Outgoing[Any],
    send: Callable[[Any], Any],
) -> None:
    """Runs both directions until either ends.

    Args:
        requests: what the peer sends. Its end, or its loss, ends the stream.
        receive: handles one request, without waiting. A LorikeetError that it raises ends the stream.
        outgoing: what is sent.
        send: a coroutine function that writes one message.
    """

    async def read() -> None:
        error: LorikeetError | None = None
        try:
            async for request in requests:
                receive(request)
        except LorikeetError as raised:
            error = raised
        finally:
            outgoing.close(error)

    reader = asyncio.ensure_future(read())
    try:
        while (message := await outgoing.next()) is not None:
            await send(message)
        if reader.done() and not reader.cancelled():
            # A bug in `receive` must not look like an orderly end.
            reader.result()
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
