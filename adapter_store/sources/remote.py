"""An adapter at a URL, whatever the protocol."""

import threading
from collections.abc import Callable
from pathlib import Path

from adapter_store.formats.safetensors_files import CONFIG_NAME, INDEX_NAME, SINGLE_NAME
from adapter_store.sources.files import (
    MAX_SMALL_BYTES,
    PICKLE_NAME,
    PROMPT_NAMES,
    check_config,
    check_size,
    prompt_notes,
    weight_files,
)
from adapter_store.sources.transfers import Attempts, Patience, Remote, RemoteFile, fetch, find_files
from rpc.errors import invalid_argument, not_found


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

    def copy(self, staged: Path, max_bytes: int, progress: Callable[[int, int], None]) -> tuple[str, ...]:
        """See `SourceReader.copy`. Raises also UNAVAILABLE, PERMISSION_DENIED, ABORTED and DATA_LOSS."""
        remote = self._connect()
        attempts = Attempts(self.source, self._patience, self._stop)
        found = find_files(
            remote, (CONFIG_NAME, SINGLE_NAME, INDEX_NAME, PICKLE_NAME, *PROMPT_NAMES), attempts
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
        prompts = [name for name in PROMPT_NAMES if name in found]
        files = [found[name] for name in (CONFIG_NAME, *prompts, *weights)]
        for file in files:
            if file.name not in weights:
                self._check_small(file)
        total = sum(file.size for file in files)
        check_size(total, max_bytes)
        done = 0

        def advance(step: int) -> None:
            nonlocal done
            done += step
            progress(done, total)

        for file in files:
            if file.name == INDEX_NAME:
                advance(file.size)
            else:
                fetch(remote, file, staged / file.name, attempts, advance)
        return prompt_notes(found)

    def _check_small(self, file: RemoteFile) -> None:
        if file.size > MAX_SMALL_BYTES:
            raise invalid_argument(
                "BAD_FILE", f"{self.source}: {file.name} is larger than {MAX_SMALL_BYTES} bytes"
            )
