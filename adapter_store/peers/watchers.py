"""Admin clients that watch adapters change state."""

from collections.abc import Sequence

from adapter_store.catalog.views import Event
from adapter_store.peers.streams import Outbox
from rpc.errors import LorikeetError, resource_exhausted

_QUEUED_EVENTS = 1024
_MAX_WATCHERS = 1024


class Watcher:
    """One Watch stream: first what there is, then what happens."""

    def __init__(self, name: str, snapshot: Sequence[Event]) -> None:
        self.name = name
        self._snapshot = list(reversed(snapshot))
        self.outbox: Outbox[Event] = Outbox(_QUEUED_EVENTS)

    async def next(self) -> Event | None:
        return self._snapshot.pop() if self._snapshot else await self.outbox.next()

    def close(self, error: LorikeetError | None = None) -> None:
        self.outbox.close(error)


class Watchers:
    """All Watch streams. Belongs to the event loop."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()
        self._goodbye: LorikeetError | None = None

    def __len__(self) -> int:
        return len(self._watchers)

    def join(self, name: str, snapshot: Sequence[Event]) -> Watcher:
        """Adds a watcher of one name, or of all (""). Raises LorikeetError when full or closed."""
        if self._goodbye is not None:
            raise self._goodbye
        if len(self._watchers) >= _MAX_WATCHERS:
            raise resource_exhausted("TOO_MANY_WATCHERS", f"{_MAX_WATCHERS} streams are watching already")
        watcher = Watcher(name, snapshot)
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def publish(self, event: Event) -> None:
        """Tells everyone; progress is left out for those who read slowly, anything else cuts them off."""
        for watcher in self._watchers:
            if watcher.name in ("", event.adapter.name):
                watcher.outbox.put(event, droppable=event.progress is not None)

    def close(self, error: LorikeetError) -> None:
        """Ends every stream, and any that comes later."""
        self._goodbye = error
        for watcher in self._watchers:
            watcher.close(error)
