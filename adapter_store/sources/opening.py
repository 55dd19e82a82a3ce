"""From what a client wrote to a reader of it."""

import threading
from collections.abc import Sequence
from pathlib import Path

from adapter_store.formats.strict_json import printable
from adapter_store.sources.folder import FolderReader
from adapter_store.sources.remote import RemoteReader
from adapter_store.sources.transfers import Patience, Remote
from adapter_store.sources.urls import (
    OBJECT_SCHEMES,
    SourceUrl,
    check_allowed,
    is_url,
    parse_prefix,
    parse_url,
)
from rpc.errors import invalid_argument

_MAX_SOURCE_LENGTH = 4096


class Sources:
    """Opens sources where the configuration allows it.

    Args:
        roots: the only folders that adapters are read from.
        prefixes: the only URLs that adapters are read from, with all that is below them.
        patience: with requests that fail.
    """

    def __init__(
        self, *, roots: Sequence[Path], prefixes: Sequence[str] = (), patience: Patience | None = None
    ) -> None:
        self._roots = tuple(roots)
        self._prefixes = tuple(map(parse_prefix, prefixes))
        self._patience = patience or Patience()
        self._stop = threading.Event()

    def open(self, source: str) -> FolderReader | RemoteReader:
        """Picks the reader of a source; touches neither disk nor network.

        Args:
            source: a folder, absolute or below one of the roots, also as file://; or a URL.

        Raises:
            LorikeetError: INVALID_ARGUMENT, PERMISSION_DENIED.
        """
        source = source.removeprefix("file://")
        if what := _unusable(source):
            shown = "" if is_url(source) else f" {printable(source)!r}"
            raise invalid_argument("BAD_SOURCE", f"the source{shown} {what}: give a folder's path, or a URL")
        if not is_url(source):
            return FolderReader(source, self._roots)
        url = parse_url(source)
        check_allowed(url, self._prefixes)
        return RemoteReader(url.public, lambda: self._connect(url), patience=self._patience, stop=self._stop)

    def close(self) -> None:
        """Ends what is being read, soon."""
        self._stop.set()

    def _connect(self, url: SourceUrl) -> Remote:
        # Imported by those who use them: the libraries take their time.
        if url.scheme in OBJECT_SCHEMES:
            from adapter_store.sources.object_store import ObjectStore

            return ObjectStore(url)
        if url.scheme == "hf":
            from adapter_store.sources.hub import HubFolder

            return HubFolder(url)
        from adapter_store.sources.http_folder import HttpFolder

        return HttpFolder(url, self._is_allowed)

    def _is_allowed(self, url: SourceUrl) -> bool:
        return any(map(url.is_below, self._prefixes))


def _unusable(source: str) -> str:
    """What is wrong with a source whatever it names; nothing where nothing is."""
    if not source:
        return "is empty"
    if len(source) > _MAX_SOURCE_LENGTH:
        return f"has {len(source)} characters, and at most {_MAX_SOURCE_LENGTH} are taken"
    return "" if source.isprintable() else "holds characters that cannot be printed"
