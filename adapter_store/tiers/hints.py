"""Hints: work that nobody waits for yet, done one after another beside what somebody does wait for."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from adapter_store.concurrency.crew import Urgency
from adapter_store.concurrency.workers import Workers

P = ParamSpec("P")
T = TypeVar("T")


class Way:
    """One pack's way into memory: begun by a hint or by a demand, which may join it later."""

    def __init__(self, *, is_urgent: bool) -> None:
        self.urgency = Urgency(is_urgent=is_urgent)
        self._waiter: asyncio.Future[None] | None = None

    def hurry(self) -> None:
        """Somebody waits for it now."""
        if not self.urgency:
            self.urgency.raise_()
            self.go_on()

    async def wait(self) -> None:
        """Until it may go on."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def go_on(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Hints:
    """One thread of their own, and whose turn it is. Belongs to the event loop."""

    def __init__(self) -> None:
        self._worker = Workers(1, "store-hint", is_nice=True)
        self._turn_of: Way | None = None
        self._line: deque[Way] = deque()

    @property
    def running(self) -> int:
        """Calls that run or wait."""
        return self._worker.running

    def turn(self, way: Way) -> "_Turn":
        """A context: waits until no other hint is followed, or until somebody waits for this one."""
        return _Turn(self, way)

    async def begin(self, way: Way) -> None:
        """Of a turn."""
        if way.urgency:
            return
        if self._turn_of is None:
            self._turn_of = way
            return
        self._line.append(way)
        try:
            await way.wait()
        except BaseException:
            self.end(way)
            raise
        finally:
            if way in self._line:
                self._line.remove(way)

    def end(self, way: Way) -> None:
        """Of a turn, which may have been nobody's."""
        if self._turn_of is way:
            self._turn_of = self._line.popleft() if self._line else None
            if self._turn_of is not None:
                self._turn_of.go_on()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a blocking function on the hints' thread."""
        return await self._worker.run(function, *args, **kwargs)

    def close(self) -> None:
        """Waits for what runs."""
        self._worker.close()


class _Turn:  # a generator's context costs several times as much
    def __init__(self, hints: Hints, way: Way) -> None:
        self._hints = hints
        self._way = way

    async def __aenter__(self) -> None:
        await self._hints.begin(self._way)

    async def __aexit__(self, *_: object) -> None:
        self._hints.end(self._way)
