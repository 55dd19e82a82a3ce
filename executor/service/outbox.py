"""What the engine has published and a frontend has not read yet: one bounded queue per frontend."""

import asyncio
import threading
from collections import deque
from dataclasses import dataclass

from executor.control.outputs import Outputs
from executor.service.encoding import size_of


class OutboxFullError(Exception):
    """The frontend reads too slowly; what it has not read is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxStatistics:
    """Of all frontends together; bytes as `size_of` counts them."""

    frontends: int
    queued_bytes: int


class Outbox:
    """One frontend's queue. Filled by any thread, emptied by one coroutine.

    Once more than `limit_bytes` would wait, the queue is dropped and stays closed: the stream is to be cut.
    """

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._shares: deque[tuple[Outputs, int]] = deque()
        self._bytes = 0
        self._full = False
        self._filled = asyncio.Event()
        self._overflowed = asyncio.Event()

    def put(self, share: Outputs) -> None:
        """Queues a share. Any thread; the caller sees to it that `wake` follows on the loop."""
        size = size_of(share)
        with self._lock:
            if self._full:
                return
            if self._bytes + size > self._limit:
                self._full = True
                self._shares.clear()
                self._bytes = 0
                return
            self._shares.append((share, size))
            self._bytes += size

    def wake(self) -> None:
        """Tells the waiting coroutines. Loop thread only."""
        self._filled.set()
        if self._full:
            self._overflowed.set()

    async def take(self) -> Outputs:
        """Waits for the oldest share and removes it. Raises OutboxFullError."""
        while True:
            with self._lock:
                if self._full:
                    raise OutboxFullError
                if self._shares:
                    share, size = self._shares.popleft()
                    self._bytes -= size
                    return share
                self._filled.clear()
            await self._filled.wait()

    async def overflow(self) -> None:
        """Returns when the queue has overflowed."""
        await self._overflowed.wait()

    @property
    def queued_bytes(self) -> int:
        """What waits; may be read by any thread."""
        return self._bytes


class Outboxes:
    """The outboxes of all connected frontends. `publish` is the engine's; the rest is the loop's."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, limit_bytes: int) -> None:
        self._loop = loop
        self._limit = limit_bytes
        self._boxes: dict[int, Outbox] = {}

    def open(self, client: int) -> Outbox:
        """A new outbox for a client's number, which is never used again."""
        assert client not in self._boxes, f"client {client} has an outbox"
        box = self._boxes[client] = Outbox(limit_bytes=self._limit)
        return box

    def close(self, client: int) -> None:
        del self._boxes[client]

    def publish(self, outputs: Outputs) -> None:
        """Sorts one step's outputs into the outboxes and wakes the loop once. Never waits."""
        filled: list[Outbox] = []
        for client, share in outputs.by_client():
            box = self._boxes.get(client)
            if box is not None:
                box.put(share)
                filled.append(box)
        if filled:
            self._loop.call_soon_threadsafe(_wake, filled)

    def statistics(self) -> OutboxStatistics:
        queued = [box.queued_bytes for box in self._boxes.values()]
        return OutboxStatistics(frontends=len(queued), queued_bytes=sum(queued))


def _wake(boxes: list[Outbox]) -> None:
    for box in boxes:
        box.wake()
