import asyncio
import threading

import pytest

from adapter_store.concurrency.workers import Workers
from tests.support.waiting import WAIT_SECONDS


async def test_workers_finish_what_a_cancelled_caller_began():
    workers = Workers(1, "test")
    begin, end, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begin.set()
        end.wait(WAIT_SECONDS)
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
    assert await asyncio.wait_for(workers.run(int), WAIT_SECONDS) == 0
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        # The one that there is does it all.
        both = asyncio.gather(workers.run(int), workers.run(int))
        assert await asyncio.wait_for(both, WAIT_SECONDS) == [0, 0]
    workers.close()
