"""What every source of adapters can do."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeGuard


class SourceReader(Protocol):
    """One adapter at one place, not read yet."""

    @property
    def source(self) -> str:
        """Where it lies, as clients may read it: without credentials."""
        ...

    @property
    def is_remote(self) -> bool:
        """Its bytes come over a network, and may take any time to."""
        ...

    def copy(
        self,
        staged: Path,
        max_bytes: int,
        progress: Callable[[int, int], None],
        headers_there: Callable[[], object] = lambda: None,
    ) -> tuple[str, ...]:
        """Writes the files that the adapter needs into a folder of ours. Blocks: for worker threads.

        Args:
            staged: an empty folder.
            max_bytes: most bytes of all files.
            progress: called with bytes done and bytes in all.
            headers_there: perhaps called, from the same thread, once every file has its final size and all
                that says what is in it; the rest follows. What this or `progress` raises ends the copy.

        Returns:
            Notes for the adapter's report.

        Raises:
            LorikeetError: what is wrong with the source, and what to do.
        """
        ...


class OutsideReader(SourceReader, Protocol):
    """A source on a file system of others."""

    @property
    def place(self) -> str:
        """What hangs together with it, should that file system not answer."""
        ...


def is_outside(reader: SourceReader) -> TypeGuard[OutsideReader]:
    """Whether a source lies on a file system of others."""
    return hasattr(type(reader), "place")
