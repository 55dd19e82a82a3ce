"""How long a stream may wait for its peer's first words."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from rpc.errors import LorikeetError, unavailable
from rpc.first_messages import FirstMessages


async def says(*words: str) -> AsyncIterator[str]:
    for word in words:
        yield word


async def says_nothing() -> AsyncIterator[str]:
    await asyncio.Event().wait()
    yield ""


async def test_the_rest_of_a_stream_is_left_for_later() -> None:
    first, messages = FirstMessages(60), says("a", "b")
    assert await first.read(messages) == "a"
    assert [word async for word in messages] == ["b"]
    assert await first.read(says()) is None


async def test_a_peer_that_says_nothing_is_cut_off() -> None:
    with pytest.raises(LorikeetError, match=r"NO_HELLO.*for 0\.01 s"):
        await FirstMessages(0.01).read(says_nothing())


async def test_all_that_wait_end_with_the_service_and_so_do_those_that_come_later() -> None:
    first = FirstMessages(60)
    waiting = [asyncio.ensure_future(first.read(says_nothing())) for _ in range(2)]
    await asyncio.sleep(0)
    first.close(unavailable("BYE", "bye"))
    for reading in (*waiting, first.read(says_nothing())):
        with pytest.raises(LorikeetError, match="BYE"):
            await reading


async def test_a_peer_that_leaves_is_no_error_of_its_stream() -> None:
    first = FirstMessages(60)
    reading = asyncio.ensure_future(first.read(says_nothing()))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    first.close(unavailable("BYE", "bye"))
