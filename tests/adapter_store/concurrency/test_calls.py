import asyncio

from adapter_store.concurrency.calls import KeyedLock, SingleFlight


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
