"""The loader of an executor without a store."""

from collections import deque
from collections.abc import Sequence

from executor.control.loader import LoaderEvent, LoadFailed
from executor.control.request import Code


class BaseOnlyLoader:
    """Implements `executor.control.loader.AdapterLoader` by refusing every adapter."""

    def __init__(self) -> None:
        self._refused: deque[str] = deque()

    def prefetch(self, digest: str) -> None:
        pass

    def acquire(self, digest: str) -> None:
        self._refused.append(digest)

    def copy(self, digest: str, unit_offset: int, slot: int) -> None:
        raise AssertionError("nothing is ever granted here")

    def install(self, slot: int, digest: str) -> None:
        raise AssertionError("nothing is ever copied here")

    def clear(self, slot: int) -> None:
        raise AssertionError("nothing is ever installed here")

    def release(self, digest: str) -> None:
        if digest in self._refused:
            self._refused.remove(digest)

    def retired(self, digest: str) -> None:
        pass

    def poll(self) -> Sequence[LoaderEvent]:
        events: list[LoaderEvent] = []
        while self._refused:
            events.append(
                LoadFailed(
                    digest=self._refused.popleft(),
                    code=Code.FAILED_PRECONDITION,
                    reason="NO_ADAPTER_STORE",
                    message="this executor serves the base model only: start it with an adapter store",
                )
            )
        return events
