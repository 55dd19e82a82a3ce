"""The first message of a stream, by which its peer says who it is."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from rpc.errors import LorikeetError, invalid_argument

T = TypeVar("T")


class FirstMessages:
    """Streams whose peers have said nothing yet. Belongs to the event loop.

    Args:
        seconds: how long a peer may take to begin.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._waiting: set[asyncio.Timeout] = set()
        self._goodbye: LorikeetError | None = None

    async def read(self, messages: AsyncIterator[T]) -> T | None:
        """A stream's first message; None where it ended without one.

        Raises:
            LorikeetError: what the streams were closed with, INVALID_ARGUMENT for a peer that says nothing.
        """
        try:
            async with asyncio.timeout(self._seconds if self._goodbye is None else 0) as patience:
                self._waiting.add(patience)
                try:
                    return await anext(messages, None)
                finally:
                    self._waiting.discard(patience)
        except TimeoutError:
            raise self._goodbye or _silent(self._seconds) from None

    def close(self, goodbye: LorikeetError) -> None:
        """Ends all that still wait, and any that come later: a stop need not wait for them."""
        self._goodbye = goodbye
        for patience in self._waiting:
            if not patience.expired():
                patience.reschedule(0)


def _silent(seconds: float) -> LorikeetError:
    return invalid_argument(
        "NO_HELLO", f"nothing came on this stream for {seconds:g} s: open it again, and say at once what for"
    )
