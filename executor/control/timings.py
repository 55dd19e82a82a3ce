"""Moments in the lives of requests. The scheduler has no clock; the engine stamps what it reports."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

from executor.control.outputs import Admitted, Event, Failed, Finished, FirstToken
from executor.control.request import BASE_DIGEST, RequestKey
from executor.control.residency import Residency
from executor.control.slots import Move

_LOADING = (Residency.LEASING, Residency.COPYING)


@dataclass(slots=True)
class _Wait:
    """How long an adapter has been without a slot, and under way, since the first of those who wait came."""

    residency: Residency
    since: float
    slot: float = 0.0
    load: float = 0.0
    waiting: int = 0

    def until(self, now: float) -> None:
        if self.residency in _LOADING:
            self.load += now - self.since
        elif self.residency != Residency.RESIDENT:
            self.slot += now - self.since
        self.since = now


@dataclass(slots=True)
class _Moments:
    submitted: float
    digest: str = BASE_DIGEST
    slot: float = 0.0
    load: float = 0.0
    waits: bool = False
    first_token: float | None = None


class Stopwatch:
    """Fills in the durations of events. Seconds."""

    def __init__(self) -> None:
        self._moments: dict[RequestKey, _Moments] = {}
        # Of adapters that are not absent, and of those that requests wait for.
        self._adapters: dict[str, _Wait] = {}

    def __len__(self) -> int:
        return len(self._moments)

    def start(self, key: RequestKey, digest: str, now: float) -> None:
        """A request has come. A key that is there already goes on."""
        if key in self._moments:
            return
        moments = self._moments[key] = _Moments(now)
        if digest != BASE_DIGEST:
            wait = self._adapters.setdefault(digest, _Wait(Residency.ABSENT, now))
            wait.until(now)
            wait.waiting += 1
            moments.digest, moments.slot, moments.load = digest, wait.slot, wait.load
            moments.waits = True

    def move(self, move: Move, now: float) -> None:
        """An adapter is somewhere else."""
        wait = self._adapters.setdefault(move.digest, _Wait(move.residency, now))
        wait.until(now)
        wait.residency = move.residency
        self._forget(move.digest, wait)

    def stamp(self, events: tuple[Event, ...], now: float) -> tuple[Event, ...]:
        """Returns the events to publish: with durations, and without those that only mark a moment."""
        return tuple(stamped for event in events if (stamped := self._stamp(event, now)) is not None)

    def _stamp(self, event: Event, now: float) -> Event | None:
        moments = self._moments.get(event.key) or _Moments(now)
        match event:
            case FirstToken():
                moments.first_token = now
                return None
            case Admitted():
                slot, load = self._waited(moments, now)
                return replace(
                    event,
                    queued_seconds=now - moments.submitted,
                    slot_wait_seconds=slot,
                    load_wait_seconds=load,
                )
            case Finished():
                self._end(event.key, moments, now)
                first = moments.submitted if moments.first_token is None else moments.first_token
                return replace(event, first_token_seconds=first - moments.submitted)
            case Failed():
                self._end(event.key, moments, now)
                return event
            case _:
                return event

    def _end(self, key: RequestKey, moments: _Moments, now: float) -> None:
        self._moments.pop(key, None)
        self._waited(moments, now)

    def _waited(self, moments: _Moments, now: float) -> tuple[float, float]:
        """What a request waited for its adapter, slot and load; it waits no longer."""
        if not moments.waits:
            return 0.0, 0.0
        moments.waits = False
        wait = self._adapters[moments.digest]
        wait.until(now)
        wait.waiting -= 1
        self._forget(moments.digest, wait)
        return wait.slot - moments.slot, wait.load - moments.load

    def _forget(self, digest: str, wait: _Wait) -> None:
        if wait.residency == Residency.ABSENT and not wait.waiting:
            del self._adapters[digest]


class Deadlines:
    """Which requests have run out of time. `alive` says which have not ended: the others need no memory."""

    def __init__(self, alive: Callable[[RequestKey], bool]) -> None:
        self._alive = alive
        self._heap: list[tuple[float, RequestKey]] = []
        self._enough = 64

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, key: RequestKey, at: float) -> None:
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > self._enough:
            self._heap = [entry for entry in self._heap if self._alive(entry[1])]
            heapq.heapify(self._heap)
            self._enough = 2 * len(self._heap) + 64

    def due(self, now: float) -> list[RequestKey]:
        """Removes and returns the keys whose deadline is over."""
        keys: list[RequestKey] = []
        while self._heap and self._heap[0][0] <= now:
            keys.append(heapq.heappop(self._heap)[1])
        return keys

    def wait(self, now: float, longest: float) -> float:
        """Seconds until the next deadline, at most `longest`."""
        return min(longest, max(self._heap[0][0] - now, 0.0)) if self._heap else longest
