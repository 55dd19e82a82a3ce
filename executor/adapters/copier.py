"""The thread that packs are copied by."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Self

log = logging.getLogger(__name__)


class Copier:
    """Does what it is handed, one after another, while its block lasts, and at the end what is left.

    A thread pool's futures, which nobody here looks at, would cost the engine's thread as much as all else
    that it does for a load.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="adapter-copy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)
        self._thread.join()

    def submit(self, call: Callable[[], None]) -> None:
        """Returns at once. The call itself tells what comes of it."""
        self._calls.put(call)

    async def run(self, call: Callable[[], None]) -> None:
        """Returns when the call has been made; raises what it raises."""
        done: Future[None] = Future()

        def tell() -> None:
            try:
                call()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self.submit(tell)
        await asyncio.wrap_future(done)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:
                log.exception("a call of the thread that copies has failed")
            del call  # and what it holds
