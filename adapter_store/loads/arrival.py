"""How much of an adapter's weights has come, while a thread copies them."""

import asyncio

# Fewer are not worth a visit to another thread.
_STEP_BYTES = 64 << 20


class Arrival:
    """Tells the event loop, where `next` is awaited, what `advance` hears from the thread that copies."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._missing: int | None = None
        self._told: int | None = None
        self.is_over = False
        """No more will come, or nobody waits for it any more."""
        self._news = asyncio.Event()

    def advance(self, done: int, total: int) -> None:
        """So many bytes of all files are there, the weights being the last of them. Thread-safe."""
        missing = total - done
        if (total if self._missing is None else self._missing) - missing >= _STEP_BYTES:
            self._missing = missing
            self._loop.call_soon_threadsafe(self._news.set)

    def end(self) -> None:
        """Ends what `next` waits for."""
        self.is_over = True
        self._news.set()

    async def next(self) -> int | None:
        """Waits for more; returns how many bytes are missing at the weights' end, None once it has ended."""
        while not self.is_over and self._missing == self._told:
            self._news.clear()
            await self._news.wait()
        self._told = self._missing
        return None if self.is_over else self._told
