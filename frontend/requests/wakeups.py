"""When the handlers of streams with news may run.

Each engine step gives news to all streams at once, and their handlers, once awake, each write a message
before the event loop looks at its sockets again. A frontend that falls behind must not answer every step like
that, or steps would pile up unread between executor and frontend. So after a burst of handlers the loop reads
on for half as long as the burst took before it starts the next; steps that arrive meanwhile are coalesced. A
frontend that keeps up waits for nothing: its next step comes later than that.
"""

import asyncio
import time
from collections.abc import Callable

_READ_SHARE = 0.5


class Wakeups:
    """Wakes waiting handlers in bursts; one for all streams of a process.

    Args:
        loop: in which everything runs.
        clock: seconds. Not the loop's own: uvloop's stands still during a turn of the loop.
        busy: seconds that this thread has computed, so that a busy machine makes no burst look long.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.thread_time,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._busy = busy
        self._waiters: list[asyncio.Future[None]] = []
        self._scheduled = False
        self._not_before = 0.0

    def add(self, waiter: asyncio.Future[None]) -> None:
        """Completes `waiter` soon, with all others that have been added by then."""
        self._waiters.append(waiter)
        if not self._scheduled:
            self._scheduled = True
            delay = self._not_before - self._clock()
            if delay > 0.0:
                self._loop.call_later(delay, self._burst)
            else:
                self._loop.call_soon(self._burst)

    def _burst(self) -> None:
        self._scheduled = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        # The loop calls in order: after the handlers that have just been woken.
        self._loop.call_soon(self._burst_ended, self._busy())

    def _burst_ended(self, busy_before: float) -> None:
        self._not_before = self._clock() + (self._busy() - busy_before) * _READ_SHARE
