import asyncio
import threading

import pytest

from adapter_store.concurrency import KeyedLock, SingleFlight, Workers
from adapter_store.followers import Followers, Target
from adapter_store.streams import Outbox, converse
from rpc.errors import LorikeetError, invalid_argument, unavailable


async def test_an_outbox_keeps_order_and_ends():
    outbox: Outbox[int] = Outbox(4)
    outbox.put(1)
    outbox.put(2)
    outbox.close()
    outbox.put(3)
    assert [await outbox.next(), await outbox.next(), await outbox.next()] == [1, 2, None]


async def test_a_full_outbox_cuts_its_reader_off():
    outbox: Outbox[int] = Outbox(4)
    for number in range(5):
        outbox.put(number)
    assert outbox.is_closed
    with pytest.raises(LorikeetError) as caught:
        await outbox.next()
    assert (caught.value.code.name, caught.value.reason) == ("RESOURCE_EXHAUSTED", "FELL_BEHIND")


async def test_droppable_messages_leave_room_for_the_others():
    outbox: Outbox[int] = Outbox(4)
    for number in range(100):
        outbox.put(number, droppable=True)
    assert len(outbox) == 2
    outbox.put(100)
    assert not outbox.is_closed


async def requests(*items, error: Exception | None = None):
    for item in items:
        await asyncio.sleep(0)
        yield item
    if error is not None:
        raise error
    if not items:
        await asyncio.Event().wait()


async def test_the_end_of_requests_ends_a_stream():
    outbox: Outbox[int] = Outbox(4)
    seen: list[int] = []

    async def send(message: int) -> None:
        seen.append(-message)

    def receive(item: int) -> None:
        seen.append(item)
        outbox.put(item)

    await converse(requests=requests(1, 2), receive=receive, outgoing=outbox, send=send)
    assert sorted(seen) == [-2, -1, 1, 2]


async def test_a_refused_request_ends_a_stream_with_its_error():
    outbox: Outbox[int] = Outbox(4)

    def receive(item: int) -> None:
        raise invalid_argument("X", "y")

    with pytest.raises(LorikeetError, match="X"):
        await converse(requests=requests(1), receive=receive, outgoing=outbox, send=None)  # type: ignore[arg-type]


async def test_a_bug_in_a_handler_is_not_swallowed():
    def receive(item: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await converse(requests=requests(1), receive=receive, outgoing=Outbox(4), send=None)  # type: ignore[arg-type]


async def test_closing_an_outbox_ends_a_stream_that_hears_nothing():
    outbox: Outbox[int] = Outbox(4)
    stream = asyncio.ensure_future(
        converse(requests=requests(), receive=print, outgoing=outbox, send=None)  # type: ignore[arg-type]
    )
    await asyncio.sleep(0)
    outbox.close(unavailable("BYE", "bye"))
    with pytest.raises(LorikeetError, match="BYE"):
        await stream


def target(name: str, digest: str) -> Target:
    return Target(name=name, digest=digest)


async def test_a_follower_hears_of_each_name_once():
    followers = Followers(1.0)
    follower = followers.join(5, [target("a", "1"), target("b", "2")])
    followers.publish(6, target("a", ""))
    followers.publish(7, target("c", "3"))
    update = await follower.next()
    assert update is not None
    assert (update.revision, update.is_snapshot) == (7, True)
    assert update.targets == [target("b", "2"), target("c", "3")]
    followers.publish(8, target("b", ""))
    followers.publish(9, target("c", "4"))
    followers.publish(10, target("c", "5"))
    update = await follower.next()
    assert update is not None
    assert (update.revision, update.is_snapshot) == (10, False)
    assert update.targets == [target("b", ""), target("c", "5")]


async def test_a_forced_removal_is_told_even_when_the_name_is_there_again():
    followers = Followers(1.0)
    follower = followers.join(5, [target("a", "1")])
    await follower.next()
    gone = Target(name="a", abort_running=True)
    followers.publish(6, gone)
    followers.publish(7, target("a", "2"))
    followers.publish(8, target("a", "3"))
    update = await follower.next()
    assert update is not None
    assert update.targets == [gone, target("a", "3")]
    followers.publish(9, gone)
    followers.publish(10, target("a", "4"))
    followers.publish(11, target("a", ""))
    update = await follower.next()
    assert update is not None
    assert update.targets == [gone]


async def test_waiting_for_followers_ends_when_all_have_acknowledged_or_left():
    followers = Followers(60.0)
    await followers.caught_up(3)
    first, second = followers.join(3, []), followers.join(3, [])
    waiting = asyncio.ensure_future(followers.caught_up(3))
    await first.next()
    followers.acknowledge(first, 3)
    await asyncio.sleep(0)
    assert not waiting.done()
    followers.leave(second)
    await waiting


async def test_a_follower_that_does_not_acknowledge_is_cut():
    followers = Followers(0.01)
    follower = followers.join(3, [])
    await followers.caught_up(3)
    assert len(followers) == 0
    with pytest.raises(LorikeetError, match="FELL_BEHIND"):
        await follower.next()


async def test_acknowledging_what_was_not_sent_is_refused():
    followers = Followers(1.0)
    follower = followers.join(3, [])
    with pytest.raises(LorikeetError, match="BAD_ACKNOWLEDGEMENT"):
        followers.acknowledge(follower, 3)
    await follower.next()
    followers.acknowledge(follower, 3)
    followers.acknowledge(follower, 1)
    assert follower.acknowledged == 3


async def test_single_flight_shares_an_attempt_and_survives_its_callers():
    flights: SingleFlight[int] = SingleFlight()
    begun = 0
    go = asyncio.Event()

    async def attempt() -> int:
        nonlocal begun
        begun += 1
        await go.wait()
        return 7

    callers = [asyncio.ensure_future(flights.run("k", attempt)) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.sleep(0)
    assert "k" in flights
    go.set()
    assert await callers[1] == await callers[2] == 7
    assert (begun, len(flights)) == (1, 0)
    assert await flights.run("k", attempt) == 7
    assert begun == 2


async def test_nobody_joins_an_attempt_that_has_departed():
    flights: SingleFlight[int] = SingleFlight()
    left, go = asyncio.Event(), asyncio.Event()

    async def leave(number: int) -> int:
        flights.depart("k")
        left.set()
        await go.wait()
        return number

    first = flights.start("k", lambda: leave(1))
    await left.wait()
    second = flights.start("k", lambda: leave(2))
    assert second is flights.start("k", lambda: leave(3))
    assert len(flights) == 2
    go.set()
    assert (await first, await second) == (1, 2)
    assert len(flights) == 0

    go.clear()
    left.clear()
    third = flights.start("k", lambda: leave(3))
    await left.wait()
    await flights.close()
    assert third.cancelled()


async def test_single_flight_hands_out_its_error():
    flights: SingleFlight[int] = SingleFlight()

    async def attempt() -> int:
        raise KeyError("k")

    results = await asyncio.gather(*(flights.run(1, attempt) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [KeyError] * 3


async def test_keyed_locks_are_forgotten_when_unused():
    locks = KeyedLock()
    order: list[str] = []

    async def use(key: str, what: str) -> None:
        async with locks.hold(key):
            order.append(f"+{what}")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append(f"-{what}")

    await asyncio.gather(use("a", "1"), use("a", "2"), use("b", "3"))
    assert order.index("-1") < order.index("+2")
    assert order.index("+3") < order.index("-1")
    assert not locks._locks  # pyright: ignore[reportPrivateUsage]


async def test_workers_finish_what_a_cancelled_caller_began():
    workers = Workers(1, "test")
    begin, end, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begin.set()
        end.wait(10)
        done.set()

    caller = asyncio.ensure_future(workers.run(work))
    await asyncio.get_running_loop().run_in_executor(None, begin.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert workers.running == 1
    end.set()
    workers.close()
    assert done.is_set()


async def test_a_thread_that_cannot_be_started_is_not_counted_on(monkeypatch):
    workers = Workers(2, "test")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start"):
            await workers.run(int)
    assert workers.running == 0
    assert await asyncio.wait_for(workers.run(int), 10) == 0
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        # The one that there is does it all.
        assert await asyncio.wait_for(asyncio.gather(workers.run(int), workers.run(int)), 10) == [0, 0]
    workers.close()
