"""A folder whose subfolders are adapters: loaded as they appear, again as they change.

By looking every second, not by events of the operating system: those do not come from network file systems,
where training jobs write.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from adapter_store.concurrency.outside_reads import Moved, OutsideReads
from adapter_store.formats.prompt_files import PROMPT_FILES
from adapter_store.formats.safetensors_files import CONFIG_NAME
from adapter_store.formats.strict_json import printable
from adapter_store.loads.request import MAY_PASS, LoadRequest
from adapter_store.sources.reader import SourceReader
from rpc.errors import LorikeetError

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
_LOOKS_BETWEEN_TRIES = 10
_MAX_FOLDERS = 100_000

Look: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Of a subfolder with an adapter: name, inode, size and time of change (ns) of each file that matters."""


class Sightings:
    """Decides what to load from what was seen. A folder counts as settled when two looks in a row agree."""

    def __init__(self) -> None:
        self._last: dict[str, Look] = {}
        self._taken: dict[str, Look] = {}
        self._waits: dict[str, int] = {}

    def see(self, looks: Mapping[str, Look]) -> list[str]:
        """Takes a look at all subfolders in; returns the names to load now."""
        due = []
        for name, look in looks.items():
            waits = self._waits.pop(name, 0)
            if self._last.get(name) != look or self._taken.get(name) == look:
                continue
            if waits > 0:
                self._waits[name] = waits - 1
                continue
            due.append(name)
            self._taken[name] = look
        self._last = dict(looks)
        # One that went and comes back is loaded again.
        self._taken = {name: look for name, look in self._taken.items() if name in looks}
        self._waits = {name: waits for name, waits in self._waits.items() if name in looks}
        return due

    def try_later(self, name: str) -> None:
        """The load failed in a way that may pass."""
        self._taken.pop(name, None)
        self._waits[name] = _LOOKS_BETWEEN_TRIES


class WatchedFolder:
    """Keeps names pointing to what lies in a folder. Belongs to the event loop.

    Adapters that are removed from the folder stay loaded: serving must not end because a disk was unmounted.

    Args:
        folder: below a root.
        open_source: makes a reader.
        load: points a name at what a reader has; tells watchers of failures itself.
        is_ready: whether loads can work yet.
        reads: threads that look.
        wait: between two looks.
    """

    def __init__(
        self,
        *,
        folder: Path,
        open_source: Callable[[str], SourceReader],
        load: Callable[[LoadRequest], Awaitable[object]],
        is_ready: Callable[[], bool],
        reads: OutsideReads,
        wait: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._folder = folder
        self._open = open_source
        self._load = load
        self._is_ready = is_ready
        self._reads = reads
        self._wait = wait
        self._sightings = Sightings()

    async def run(self) -> None:
        """Watches until cancelled."""
        complaint = ""
        while True:
            try:
                if self._is_ready():
                    await self.look()
                complaint = ""
            except (OSError, LorikeetError) as error:
                if str(error) != complaint:
                    log.warning("the watched folder %s cannot be read: %s", self._folder, error)
                complaint = str(error)
            await self._wait(_SECONDS_BETWEEN_LOOKS)

    async def look(self) -> None:
        """Looks once and loads what is due, one after another.

        Raises OSError, and LorikeetError (UNAVAILABLE) when the folder does not answer.
        """
        place = f"the watched folder {self._folder}"
        looks = await self._reads.run(place, lambda moved: look_at(self._folder, moved))
        for name in self._sightings.see(looks):
            try:
                reader = self._open(str(self._folder / name))
                await self._load(LoadRequest(name=name, reader=reader, for_everyone=True))
            except LorikeetError as error:
                log.warning("the watched adapter %s was not loaded: %s", printable(name), error)
                if error.code in MAY_PASS:
                    self._sightings.try_later(name)
            except Exception:
                # One adapter's trouble must not keep the others, or the watching, from going on.
                log.exception("the watched adapter %s was not loaded", printable(name))
                self._sightings.try_later(name)


def look_at(folder: Path, moved: Moved) -> dict[str, Look]:
    """What each subfolder with an adapter looks like. Raises OSError when the folder cannot be read."""
    looks: dict[str, Look] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            moved()
            # What begins with a dot waits to be renamed. Any other bad name is told when it is loaded.
            is_hidden = entry.name.startswith(".")
            if len(looks) < _MAX_FOLDERS and not is_hidden and (look := _look_into(entry.path)):
                looks[entry.name] = look
    return looks


def _look_into(folder: str) -> Look:
    found: list[tuple[str, int, int, int]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name in (CONFIG_NAME, *PROMPT_FILES) or name.startswith("adapter_model"):
                    status = entry.stat()
                    found.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    except OSError:
        # No folder, or one that is being written or removed.
        return ()
    names = [name for name, *_ in found]
    is_whole = CONFIG_NAME in names and any(name.startswith("adapter_model") for name in names)
    return tuple(sorted(found)) if is_whole else ()
