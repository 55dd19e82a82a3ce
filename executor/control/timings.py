"""Moments in the lives of requests. The scheduler has no clock; the engine stamps what it reports."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

from executor.control.outputs import AdapterReady, Admitted, Event, Failed, Finished, FirstToken
from executor.control.request import RequestKey


@dataclass(slots=True)
class _Moments:
    submitted: float
    ready: float | None = None
    first_token: float | None = None


class Stopwatch:
    """Fills in the durations of events. Seconds."""

    def __init__(self) -> None:
        self._moments: dict[RequestKey, _Moments] = {}

    def __len__(self) -> int:
        return len(self._moments)

    def start(self, key: RequestKey, now: float) -> None:
        self._moments.setdefault(key, _Moments(now))

    def stamp(self, events: tuple[Event, ...], now: float) -> tuple[Event, ...]:
        """Returns the events to publish: with durations, and without those that only mark a moment."""
        return tuple(stamped for event in events if (stamped := self._stamp(event, now)) is not None)

    def _stamp(self, event: Event, now: float) -> Event | None:
        moments = self._moments.get(event.key) or _Moments(now)
        match event:
            case AdapterReady():
                moments.ready = now
                return None
            case FirstToken():
                moments.first_token = now
                return None
            case Admitted():
                waited = 0.0 if moments.ready is None else moments.ready - moments.submitted
                return replace(event, queued_seconds=now - moments.submitted, adapter_wait_seconds=waited)
            case Finished():
                self._moments.pop(event.key, None)
                first = moments.submitted if moments.first_token is None else moments.first_token
                return replace(event, first_token_seconds=first - moments.submitted)
            case Failed():
                self._moments.pop(event.key, None)
                return event
            case _:
                return event


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
