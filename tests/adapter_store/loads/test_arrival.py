"""Adapters whose files are copied: how much of one has come."""

import asyncio

from adapter_store.loads import arrival
from adapter_store.loads.arrival import Arrival


async def test_an_arrival_tells_of_steps_and_of_its_end(monkeypatch):
    monkeypatch.setattr(arrival, "_STEP_BYTES", 100)
    coming = Arrival()
    first = asyncio.ensure_future(coming.next())
    for done in (0, 99):
        await asyncio.to_thread(coming.advance, done, 1000)
    assert not first.done()
    await asyncio.to_thread(coming.advance, 150, 1000)
    assert await first == 850
    await asyncio.to_thread(coming.advance, 250, 1000)
    await asyncio.to_thread(coming.advance, 360, 1000)
    # The latest, once.
    assert await coming.next() == 640
    coming.end()
    assert await coming.next() is None
