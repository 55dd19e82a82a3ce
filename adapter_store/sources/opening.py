"""From what a client wrote to a reader of it."""

from collections.abc import Sequence
from pathlib import Path

from adapter_store.formats.strict_json import printable
from adapter_store.sources.folder import FolderReader
from adapter_store.sources.reader import SourceReader
from rpc.errors import invalid_argument, unimplemented

_MAX_SOURCE_LENGTH = 4096


class Sources:
    """Opens sources where the configuration allows it.

    Args:
        roots: the only folders that adapters are read from.
    """

    def __init__(self, *, roots: Sequence[Path]) -> None:
        self._roots = tuple(roots)

    def open(self, source: str) -> SourceReader:
        """Picks the reader of a source; touches neither disk nor network.

        Args:
            source: a folder, absolute or below one of the roots.

        Raises:
            LorikeetError: INVALID_ARGUMENT, UNIMPLEMENTED.
        """
        if not source or len(source) > _MAX_SOURCE_LENGTH or not source.isprintable():
            raise invalid_argument("BAD_SOURCE", f"the source {printable(source)!r} is not a folder's path")
        scheme, separator, _ = source.partition("://")
        if separator:
            raise unimplemented(
                "UNSUPPORTED_SOURCE",
                f"sources with {scheme}:// are not supported; give a folder below a root",
            )
        return FolderReader(source, self._roots)
