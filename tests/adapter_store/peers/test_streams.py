import asyncio

import pytest

from adapter_store.peers.streams import Outbox, converse
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
