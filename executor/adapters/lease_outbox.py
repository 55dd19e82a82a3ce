"""What is still to be said on one Lease stream."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from lorikeet.v1 import store_pb2

_PATIENCE_SECONDS = 0.01
_MOST_TOGETHER = 64


class LeaseOutbox:
    """Messages for the store, in order. Belongs to the event loop.

    Each message costs both sides a wake-up or two, so what the store can hear a little later travels with
    what it must hear now. Holds a few entries per adapter that is on its way or retires.
    """

    def __init__(self) -> None:
        self._waiting: deque[store_pb2.LeaseRequest] = deque()
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def say(self, request: store_pb2.LeaseRequest, *, is_urgent: bool = True) -> None:
        """Queues a message. One that is not urgent may wait for another, though not for long."""
        self._waiting.append(request)
        if is_urgent:
            self._flush()
        elif self._timer is None and not self._wake.is_set():
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._flush)

    async def messages(self, hello: store_pb2.LeaseHello) -> AsyncIterator[store_pb2.LeaseRequest]:
        """Hello, then what was queued; has no end."""
        yield store_pb2.LeaseRequest(hello=hello)
        while True:
            await self._wake.wait()
            count = min(len(self._waiting), _MOST_TOGETHER)
            together = [self._waiting.popleft() for _ in range(count)]
            if not self._waiting:
                self._wake.clear()
            if len(together) == 1:
                yield together[0]
            else:
                yield store_pb2.LeaseRequest(batch=store_pb2.LeaseBatch(requests=together))

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake.set()
