"""What travels together to the store, and what does not wait."""

import asyncio

from executor.adapters.lease_outbox import LeaseOutbox
from lorikeet.v1 import store_pb2
from tests.support.waiting import WAIT_SECONDS


def acquire(lease: int) -> store_pb2.LeaseRequest:
    return store_pb2.LeaseRequest(acquire=store_pb2.AcquireLease(lease=lease))


def release(lease: int) -> store_pb2.LeaseRequest:
    return store_pb2.LeaseRequest(release=store_pb2.ReleaseLease(lease=lease))


async def test_what_can_wait_travels_with_what_cannot_in_order() -> None:
    outbox = LeaseOutbox()
    messages = outbox.messages(store_pb2.LeaseHello(incarnation="e"))
    assert (await anext(messages)).hello.incarnation == "e"
    outbox.say(release(1), is_urgent=False)
    outbox.say(release(2), is_urgent=False)
    outbox.say(acquire(3))
    assert list((await anext(messages)).batch.requests) == [release(1), release(2), acquire(3)]
    outbox.say(acquire(4))
    assert await anext(messages) == acquire(4)


async def test_what_can_wait_goes_by_itself_after_a_while() -> None:
    outbox = LeaseOutbox()
    messages = outbox.messages(store_pb2.LeaseHello())
    await anext(messages)
    waiting = asyncio.ensure_future(anext(messages))
    outbox.say(release(1), is_urgent=False)
    async with asyncio.timeout(WAIT_SECONDS):
        assert await waiting == release(1)
    assert not len(outbox)


async def test_a_great_many_take_several_messages() -> None:
    outbox = LeaseOutbox()
    messages = outbox.messages(store_pb2.LeaseHello())
    await anext(messages)
    for lease in range(65):
        outbox.say(acquire(lease))
    assert len((await anext(messages)).batch.requests) == 64
    assert await anext(messages) == acquire(64)
