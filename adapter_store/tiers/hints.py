"""Hints: work that nobody waits for yet, done one after another beside what somebody does wait for."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from adapter_store.concurrency import Workers
from adapter_store.crew import Urgency

P = ParamSpec("P")
T = TypeVar("T")


class Way:
    """One pack's way into memory: begun by a hint or by a demand, which may join it later."""

    def __init__(self, *, is_urgent: bool) -> None:
        self.urgency = Urgency(is_urgent=is_urgent)
        self.hurried = asyncio.Event()
        if is_urgent:
            self.hurried.set()

    def hurry(self) -> None:
        """Somebody waits for it now."""
        self.urgency.raise_()
        self.hurried.set()


class Hints:
    """One thread of their own, and whose turn it is. Belongs to the event loop."""

    def __init__(self) -> None:
        self._worker = Workers(1, "store-hint", is_nice=True)
        self._turn = asyncio.Lock()

    @property
    def running(self) -> int:
        """Calls that run or wait."""
        return self._worker.running

    @asynccontextmanager
    async def turn(self, way: Way) -> AsyncIterator[None]:
        """Waits until no other hint is followed, or until somebody waits for this one."""
        if way.hurried.is_set():
            yield
            return
        mine = asyncio.ensure_future(self._turn.acquire())
        hurried = asyncio.ensure_future(way.hurried.wait())
        try:
            await asyncio.wait({mine, hurried}, return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            hurried.cancel()
            if not mine.cancel() and not mine.cancelled():
                self._turn.release()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a blocking function on the hints' thread."""
        return await self._worker.run(function, *args, **kwargs)

    def close(self) -> None:
        """Waits for what runs."""
        self._worker.close()
