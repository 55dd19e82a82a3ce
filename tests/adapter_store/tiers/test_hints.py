import asyncio

from adapter_store.tiers.hints import Hints, Way


async def test_hints_take_turns_and_a_demand_waits_for_none():
    hints = Hints()
    order: list[str] = []
    go = asyncio.Event()

    async def follow(name: str, way: Way, wait: bool = False) -> None:
        async with hints.turn(way):
            order.append(name)
            if wait:
                await go.wait()

    second = Way(is_urgent=False)
    first_task = asyncio.ensure_future(follow("first", Way(is_urgent=False), wait=True))
    second_task = asyncio.ensure_future(follow("second", second))
    third_task = asyncio.ensure_future(follow("third", Way(is_urgent=False)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert order == ["first"]
    await follow("demand", Way(is_urgent=True))
    # A demand that joins a hint takes it out of the line.
    second.hurry()
    await second_task
    assert order == ["first", "demand", "second"]
    go.set()
    await asyncio.gather(first_task, third_task)
    assert order[-1] == "third"
    hints.close()
