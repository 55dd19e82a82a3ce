"""Commands from other threads to the engine's."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from executor.control.request import Request, RequestKey


@dataclass(frozen=True, slots=True)
class Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class Finish:
    """The frontend ended the request itself: a stop string."""

    key: RequestKey


@dataclass(frozen=True, slots=True)
class Abort:
    key: RequestKey


@dataclass(frozen=True, slots=True)
class Hint:
    """This digest is likely to be asked for soon."""

    digest: str


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The connection is closed: nobody waits for its requests."""

    client: int


Command = Submit | Finish | Abort | Hint | ClientGone


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxStatistics:
    """Commands that wait; those refused since the start."""

    waiting: int
    refused: int


class Mailbox:
    """A bounded queue that many threads fill and one empties. Nothing in it ever blocks the filling side."""

    def __init__(self, capacity: int = 16384) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._commands: list[Command] = []
        self._woken = False
        self._closed = False
        self._refused = 0

    def post(self, commands: Sequence[Command]) -> bool:
        """Adds commands in order, all or none; False when there is no room, or when closed. Never blocks."""
        with self._changed:
            if self._closed or len(self._commands) + len(commands) > self._capacity:
                self._refused += len(commands)
                return False
            self._commands.extend(commands)
            self._changed.notify()
            return True

    def client_gone(self, client: int) -> None:
        """Always finds room, so that a connection that is cut because the mailbox is full can be cleaned up.

        There is one a connection, and connections are few.
        """
        with self._changed:
            self._commands.append(ClientGone(client))
            self._changed.notify()

    def wake(self) -> None:
        """Ends the engine's wait: there is something to do that is no command, such as a loader event."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        """Refuses everything from now on."""
        with self._changed:
            self._closed = True
            self._woken = True
            self._changed.notify()

    def take(self) -> list[Command]:
        """Returns all commands, oldest first. Only the engine's thread may call this and `wait`."""
        with self._changed:
            commands, self._commands = self._commands, []
            self._woken = False
            return commands

    def wait(self, timeout: float) -> None:
        """Waits for a command or a wake-up since the last `take`, at most `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._commands) or self._woken, timeout)

    def statistics(self) -> MailboxStatistics:
        return MailboxStatistics(waiting=len(self._commands), refused=self._refused)
