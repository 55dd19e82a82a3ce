"""All streams of frontends: opened, closed and drained in one place."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from executor.control.mailbox import Mailbox
from executor.service.commands import RequestLimits
from executor.service.outbox import Outboxes
from executor.service.session import Session
from rpc.errors import LorikeetError, unavailable
from rpc.first_messages import FirstMessages


class Sessions:
    """Gives each stream a client number, never used again, and its outbox; takes both back at its end."""

    def __init__(self, *, mailbox: Mailbox, outboxes: Outboxes, limits: RequestLimits) -> None:
        self._mailbox = mailbox
        self._outboxes = outboxes
        self._limits = limits
        self._numbers = itertools.count(1)
        self._draining = asyncio.Event()
        self.first_messages = FirstMessages()
        """Of streams that are not open yet."""

    @contextmanager
    def open(self) -> Iterator[Session]:
        """A stream's session; its requests are aborted when the block ends. Raises UNAVAILABLE while
        draining.
        """
        if self._draining.is_set():
            raise _shutting_down()
        client = next(self._numbers)
        outbox = self._outboxes.open(client)
        try:
            yield Session(
                client=client,
                mailbox=self._mailbox,
                outbox=outbox,
                limits=self._limits,
                draining=self._draining,
            )
        finally:
            self._outboxes.close(client)
            self._mailbox.client_gone(client)

    def drain(self) -> None:
        """No new streams and requests from now on; each stream is cut once its requests have ended."""
        self._draining.set()
        self.first_messages.close(_shutting_down())


def _shutting_down() -> LorikeetError:
    return unavailable("DRAINING", "the executor is shutting down: connect again")
