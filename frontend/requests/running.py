"""Requests that generate now, by the adapter that they asked for, so that a forced unload can end them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from frontend.adapters.references import AdapterRef
from frontend.engine.flights import Flight
from frontend.requests.request_stream import RequestStream
from rpc.errors import aborted


@dataclass(frozen=True, eq=False, slots=True)
class _Request:
    stream: RequestStream
    flights: Sequence[Flight]


class RunningRequests:
    """Who runs under which name or digest. Belongs to the event loop.

    Args:
        abort: tells the executor that nobody waits for a flight any more.
    """

    def __init__(self, abort: Callable[[Flight], None]) -> None:
        self._abort = abort
        self._requests: dict[AdapterRef, set[_Request]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._requests.values()))

    @contextmanager
    def track(self, adapter: AdapterRef, stream: RequestStream, flights: Sequence[Flight]) -> Iterator[None]:
        """Keeps a request here for as long as a block takes, and aborts what it left at the executor."""
        request = _Request(stream, flights)
        self._requests.setdefault(adapter, set()).add(request)
        try:
            yield
        finally:
            self._end(flights)
            theirs = self._requests[adapter]
            theirs.discard(request)
            if not theirs:
                del self._requests[adapter]

    def unload(self, name: str, digest: str) -> None:
        """Ends the requests of a name that was unloaded with force.

        Args:
            digest: what the name pointed to, if no other name does; requests by this digest end too.
        """
        gone = [ref for ref in self._requests if ref.name == name or (digest and ref.digest == digest)]
        for ref in gone:
            for request in self._requests[ref]:
                # At once, not when its client has taken what waits for it.
                self._end(request.flights)
                request.stream.on_failed(
                    aborted(
                        "ADAPTER_UNLOADED",
                        f'"{name}" was unloaded by force while this request ran: what came so far is all '
                        "there is; load the adapter again to go on",
                        adapter=name,
                    )
                )

    def _end(self, flights: Sequence[Flight]) -> None:
        for flight in flights:
            self._abort(flight)
