import asyncio
from collections.abc import Callable
from typing import Any, cast

from frontend.requests.wakeups import Wakeups


class Clockwork:
    """As much of an event loop as wake-ups use, with a clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ready: list[Callable[[], Any]] = []
        self.timers: list[tuple[float, Callable[[], Any]]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., Any], *arguments: Any) -> None:
        self.ready.append(lambda: callback(*arguments))

    def call_later(self, delay: float, callback: Callable[..., Any], *arguments: Any) -> None:
        self.timers.append((self.now + delay, lambda: callback(*arguments)))

    def turn(self) -> None:
        """One turn of the loop."""
        due = [callback for when, callback in self.timers if when <= self.now + 1e-9]
        self.timers = [(when, callback) for when, callback in self.timers if when > self.now + 1e-9]
        ready, self.ready = [*self.ready, *due], []
        for callback in ready:
            callback()


class Waiter:
    """A future that notes when its handler ran."""

    def __init__(self) -> None:
        self.woken = False

    def done(self) -> bool:
        return self.woken

    def set_result(self, _: None) -> None:
        self.woken = True


def add(wakeups: Wakeups) -> Waiter:
    waiter = Waiter()
    wakeups.add(cast("asyncio.Future[None]", waiter))
    return waiter


def test_a_frontend_that_keeps_up_waits_for_nothing():
    loop = Clockwork()
    wakeups = Wakeups(cast(asyncio.AbstractEventLoop, loop), clock=loop.time, busy=loop.time)
    for _ in range(3):
        waiters = [add(wakeups), add(wakeups)]
        loop.turn()
        assert all(waiter.woken for waiter in waiters)
        loop.now += 0.004  # the burst
        loop.turn()
        loop.now += 0.004  # until the next step
        assert not loop.timers


def test_after_a_burst_the_loop_reads_on_for_half_as_long():
    loop = Clockwork()
    wakeups = Wakeups(cast(asyncio.AbstractEventLoop, loop), clock=loop.time, busy=loop.time)
    add(wakeups)
    loop.turn()
    loop.now += 0.004
    loop.turn()
    early = add(wakeups)
    loop.now += 0.001
    loop.turn()
    assert not early.woken
    late = add(wakeups)
    loop.now += 0.001
    loop.turn()
    assert early.woken
    assert late.woken


def test_a_waiter_that_is_gone_is_passed_over():
    loop = Clockwork()
    wakeups = Wakeups(cast(asyncio.AbstractEventLoop, loop), clock=loop.time, busy=loop.time)
    gone, other = add(wakeups), add(wakeups)
    gone.woken = True
    loop.turn()
    assert other.woken
