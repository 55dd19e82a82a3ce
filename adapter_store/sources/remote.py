"""An adapter at a URL, whatever the protocol."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from adapter_store.formats.prompt_files import PROMPT_FILES
from adapter_store.formats.safetensors_files import CONFIG_NAME, INDEX_NAME, SINGLE_NAME, header_bytes
from adapter_store.packs.reading import read_config
from adapter_store.sources.files import (
    MAX_SMALL_BYTES,
    PICKLE_NAME,
    by_steps,
    check_config,
    check_size,
    prompt_notes,
    weight_files,
)
from adapter_store.sources.transfers import Attempts, Patience, Remote, RemoteFile, fetch, find_files
from rpc.errors import invalid_argument, not_found

# Smaller ones are there before much could be said of them.
_LARGE_BYTES = 8 << 20


class RemoteReader:
    """A `SourceReader` over a network.

    Args:
        source: for people, without credentials.
        connect: makes the remote, on the thread that copies.
        patience: with requests that fail.
        stop: set when the store shuts down.
    """

    is_remote = True

    def __init__(
        self, source: str, connect: Callable[[], Remote], *, patience: Patience, stop: threading.Event
    ) -> None:
        self.source = source
        self._connect = connect
        self._patience = patience
        self._stop = stop

    def is_there(self) -> bool:
        """Whether there is an adapter; its files are not looked into. Blocks. Raises as `copy`."""
        attempts = Attempts(self.source, self._patience, self._stop)
        return bool(find_files(self._connect(), (CONFIG_NAME,), attempts))

    def copy(
        self,
        staged: Path,
        max_bytes: int,
        progress: Callable[[int, int], None],
        headers_there: Callable[[], object] = lambda: None,
    ) -> tuple[str, ...]:
        """See `SourceReader.copy`. Raises also UNAVAILABLE, PERMISSION_DENIED, ABORTED and DATA_LOSS."""
        remote = self._connect()
        attempts = Attempts(self.source, self._patience, self._stop)
        files, notes = self._find(remote, staged, attempts)
        total = sum(file.size for file in files)
        check_size(total, max_bytes)
        advance = by_steps(progress, total)
        for file in files:
            path = staged / file.name
            if file.name == INDEX_NAME:
                advance(file.size)  # it was read to find the others
            elif file.name == SINGLE_NAME and file.size >= _LARGE_BYTES:
                fetch(remote, file, path, attempts, _until_header(path, file.size, advance, headers_there))
            else:
                fetch(remote, file, path, attempts, advance)
            if file.name == CONFIG_NAME and total >= _LARGE_BYTES:
                read_config(path)
        return notes

    def _find(
        self, remote: Remote, staged: Path, attempts: Attempts
    ) -> tuple[list[RemoteFile], tuple[str, ...]]:
        """The files to bring, the weights last, and notes; the index is there already."""
        found = find_files(
            remote, (CONFIG_NAME, SINGLE_NAME, INDEX_NAME, PICKLE_NAME, *PROMPT_FILES), attempts
        )
        check_config(self.source, found)

        def read_index() -> bytes:
            self._check_small(found[INDEX_NAME])
            fetch(remote, found[INDEX_NAME], staged / INDEX_NAME, attempts, lambda _: None)
            return (staged / INDEX_NAME).read_bytes()

        weights = weight_files(self.source, found, read_index)
        shards = [name for name in weights if name not in found]
        found |= find_files(remote, shards, attempts) if shards else {}
        if missing := [name for name in shards if name not in found]:
            raise not_found("NO_FILE", f"{self.source}: {missing[0]} is missing")
        small = [CONFIG_NAME, *(name for name in PROMPT_FILES if name in found)]
        for name in small:
            self._check_small(found[name])
        return [found[name] for name in (*small, *weights)], prompt_notes(found)

    def _check_small(self, file: RemoteFile) -> None:
        if file.size > MAX_SMALL_BYTES:
            raise invalid_argument(
                "BAD_FILE", f"{self.source}: {file.name} is larger than {MAX_SMALL_BYTES} bytes"
            )


def _until_header(
    path: Path, size: int, advance: Callable[[int], None], headers_there: Callable[[], object]
) -> Callable[[int], None]:
    """`advance` for a file of weights, which tells once when its header has come, and its size is final."""
    done, is_told = 0, False

    def advanced(step: int) -> None:
        nonlocal done, is_told
        advance(step)
        done += step
        if not is_told and done >= _header_bytes(path):
            is_told = True
            os.truncate(path, size)
            headers_there()

    return advanced


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return header_bytes(file.fileno())
