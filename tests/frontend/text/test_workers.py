"""The threads that long texts are worked on in."""

import asyncio
import gc
import subprocess
import sys
import threading
import weakref

import grpc
import pytest

from frontend.text.workers import TextWorkers
from rpc.errors import LorikeetError
from tests.support.waiting import WAIT_SECONDS


async def test_too_many_long_texts_are_refused_and_places_come_back():
    workers = TextWorkers(threads=1, max_waiting=2)
    release = threading.Event()
    waiting = [asyncio.create_task(workers.run(release.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(LorikeetError) as caught:
        await workers.run(lambda: None)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    waiting[1].cancel()
    release.set()
    assert await waiting[0]
    assert await workers.run(lambda: 5) == 5
    assert workers.statistics() == {"texts_waiting": 0}
    workers.close()


async def test_a_text_that_is_refused_is_let_go():
    class Text:
        pass

    def refused(text: Text) -> None:
        raise ValueError("too long")

    async def ask() -> "weakref.ref[Text]":
        text = Text()
        with pytest.raises(ValueError, match="too long"):
            await workers.run(lambda: refused(text))
        return weakref.ref(text)

    workers = TextWorkers(threads=1)
    gc.collect()
    gc.disable()
    try:
        texts = [await ask() for _ in range(3)]
        # The thread has the last one until it has put the work away.
        await workers.run(lambda: None)
        assert [text() for text in texts] == [None] * 3
    finally:
        gc.enable()
    workers.close()


def test_a_text_that_is_in_work_when_the_loop_ends_is_no_error(caplog: pytest.LogCaptureFixture):
    begun, release, threads = threading.Event(), threading.Event(), list[threading.Thread]()

    def work() -> None:
        threads.append(threading.current_thread())
        begun.set()
        release.wait(WAIT_SECONDS)

    async def leave() -> None:
        workers = TextWorkers(threads=1)
        task = asyncio.create_task(workers.run(work))
        assert await asyncio.to_thread(begun.wait, WAIT_SECONDS)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        workers.close()

    asyncio.run(leave())
    release.set()
    threads[0].join(WAIT_SECONDS)
    assert not caplog.records


_ENDS = """
import asyncio, threading
from frontend.text.workers import TextWorkers

async def main():
    workers, begun = TextWorkers(threads=1), threading.Event()
    works = (lambda: (begun.set(), threading.Event().wait()), int)
    tasks = [asyncio.ensure_future(workers.run(work)) for work in works]
    await asyncio.to_thread(begun.wait)
    workers.close()
    try:
        await tasks[1]
    except asyncio.CancelledError:
        print("dropped")
    tasks[0].cancel()

asyncio.run(main())
"""


def test_a_process_that_ends_waits_for_no_text() -> None:
    child = [sys.executable, "-c", _ENDS]
    ended = subprocess.run(child, timeout=WAIT_SECONDS, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "dropped\n", "")
