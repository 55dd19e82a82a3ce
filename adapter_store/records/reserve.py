"""Room on the disk that is kept for the one thing a full disk must not prevent: making room."""

import errno
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

# A removal writes a few pages of the catalog and its journal, and moves some files.
_RESERVE_BYTES = 1 << 20


class Reserve:
    """A file that does nothing but take room, and is deleted when a removal needs it. Blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        """Takes the room, if it is not taken and the disk has it."""
        try:
            if self._path.exists() and self._path.stat().st_size >= _RESERVE_BYTES:
                return
            with self._path.open("wb") as file:
                # Written, not allocated: some file systems only promise what is not written.
                file.write(bytes(_RESERVE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._path.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                log.warning("no room is kept for unloading on a full disk: %s", error)

    def give_up(self) -> bool:
        """Frees the room; False when there is none."""
        if not self._path.exists():
            return False
        log.warning("the disk is full: giving up the store's reserve, so that adapters can be unloaded")
        self._path.unlink(missing_ok=True)
        return True
