"""Digests that are about to be asked for: told to the executor before their requests are ready to go."""

from collections import OrderedDict

_MAX_PENDING = 64
_MAX_REMEMBERED = 1024
_FRESH_SECONDS = 1.0


class Hints:
    """Collects hints for the next message of commands: each digest once a second at most, and few at a time.

    A hint that finds no room is dropped: it would only have saved time.
    """

    def __init__(self) -> None:
        self._pending: dict[str, None] = {}
        self._told: OrderedDict[str, float] = OrderedDict()

    def add(self, digest: str, now: float) -> bool:
        """Takes a hint in; returns whether there is something new to tell. `now` is in seconds."""
        told = self._told.get(digest)
        if not digest or len(self._pending) >= _MAX_PENDING:
            return False
        if told is not None and now - told < _FRESH_SECONDS:
            return False
        self._told[digest] = now
        self._told.move_to_end(digest)
        if len(self._told) > _MAX_REMEMBERED:
            self._told.popitem(last=False)
        self._pending[digest] = None
        return True

    def take(self) -> list[str]:
        """All that is to be told, oldest first."""
        pending = list(self._pending)
        self._pending.clear()
        return pending

    def connection_lost(self) -> None:
        """The next executor has been told nothing."""
        self._pending.clear()
        self._told.clear()
