"""The bounded queue between the engine's thread and a frontend's stream."""

import asyncio
import threading

import pytest

from executor.control.outputs import Failed, Outputs, only_events
from executor.control.request import Code, RequestKey
from executor.service.encoding import size_of
from executor.service.outbox import Outboxes, OutboxFullError


def share(client: int, index: int = 1) -> Outputs:
    return only_events((Failed(key=RequestKey(client, index), code=Code.INTERNAL, reason="R", message="m"),))


def both(first: int, second: int) -> Outputs:
    return only_events((*share(first).events, *share(second).events))


async def test_each_client_gets_its_own_share_in_order() -> None:
    outboxes = Outboxes(loop=asyncio.get_running_loop(), limit_bytes=1 << 20)
    one, two = outboxes.open(1), outboxes.open(2)

    def engine() -> None:
        outboxes.publish(both(1, 2))
        outboxes.publish(share(2, 5))
        outboxes.publish(share(3))

    thread = threading.Thread(target=engine)
    thread.start()
    assert [event.key for event in (await one.take()).events] == [RequestKey(1, 1)]
    assert [event.key for event in (await two.take()).events] == [RequestKey(2, 1)]
    assert [event.key for event in (await two.take()).events] == [RequestKey(2, 5)]
    thread.join()
    assert outboxes.statistics().queued_bytes == 0


async def test_a_taker_that_waits_is_woken_from_another_thread() -> None:
    outboxes = Outboxes(loop=asyncio.get_running_loop(), limit_bytes=1 << 20)
    box = outboxes.open(1)
    taking = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    thread = threading.Thread(target=outboxes.publish, args=(share(1),))
    thread.start()
    assert (await taking).events
    thread.join()


async def test_a_full_box_drops_all_and_stays_closed_while_others_go_on() -> None:
    size = size_of(share(1))
    outboxes = Outboxes(loop=asyncio.get_running_loop(), limit_bytes=3 * size)
    slow, quick = outboxes.open(1), outboxes.open(2)
    for _ in range(3):
        outboxes.publish(both(1, 2))
        await quick.take()
    assert outboxes.statistics().queued_bytes == 3 * size
    outboxes.publish(both(1, 2))
    await slow.overflow()
    with pytest.raises(OutboxFullError):
        await slow.take()
    outboxes.publish(both(1, 2))
    assert outboxes.statistics().queued_bytes == 2 * size
    assert (await quick.take()).events
    outboxes.close(1)
    outboxes.close(2)
    assert outboxes.statistics().frontends == 0


async def test_taking_makes_room() -> None:
    size = size_of(share(1))
    outboxes = Outboxes(loop=asyncio.get_running_loop(), limit_bytes=size)
    box = outboxes.open(1)
    for _ in range(10):
        outboxes.publish(share(1))
        await box.take()
