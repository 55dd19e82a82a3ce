"""The loader of an executor without a store: its scheduler has no adapter slots and asks for nothing."""

from collections.abc import Sequence
from typing import NoReturn

from executor.control.loader import LoaderEvent


class BaseOnlyLoader:
    """Implements `executor.control.loader.AdapterLoader` for the base model alone."""

    def prefetch(self, digest: str) -> None:
        pass

    def acquire(self, digest: str) -> NoReturn:
        raise AssertionError("an executor without adapter slots asks for no adapter")

    def copy(self, digest: str, unit_offset: int, slot: int) -> NoReturn:
        raise AssertionError("nothing is ever granted here")

    def install(self, slot: int, digest: str) -> NoReturn:
        raise AssertionError("nothing is ever copied here")

    def clear(self, slot: int) -> NoReturn:
        raise AssertionError("nothing is ever installed here")

    def release(self, digest: str) -> NoReturn:
        raise AssertionError("nothing is ever acquired here")

    def retired(self, digest: str) -> None:
        pass

    def poll(self) -> Sequence[LoaderEvent]:
        return ()
