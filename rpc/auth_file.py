"""The file of tokens, read again when it changes."""

import asyncio
import logging
import os
import stat
from pathlib import Path

from rpc.tokens import TokenTable, parse_tokens

log = logging.getLogger(__name__)

_MAX_BYTES = 16 << 20
_POLL_SECONDS = 1.0


class AuthFile:
    """What a file of tokens says. A broken change leaves what was read before in force.

    Raises ValueError, saying what to change, when it cannot be read at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._complaint = ""
        self.tokens = self._read()

    def refresh(self) -> bool:
        """Reads the file again if it is another one than before; False when it could not be used."""
        try:
            if self._stamp() == self._seen:
                return True
            self.tokens = self._read()
        except ValueError as error:
            # Once: this is read every second.
            if str(error) != self._complaint:
                log.error("%s; the tokens read before stay in force", error)
            self._complaint = str(error)
            return False
        self._complaint = ""
        log.info("%d tokens read from %s", len(self.tokens), self._path)
        return True

    async def follow(self) -> None:
        """Refreshes for ever."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            self.refresh()

    def _stamp(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError as error:
            self._seen = ()
            raise ValueError(f"auth_file {self._path} cannot be read: {error.strerror}") from error
        return (status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode)

    def _read(self) -> TokenTable:
        stamp = self._stamp()
        # Also of a file that is refused: it is complained of once.
        self._seen = stamp
        if not stat.S_ISREG(stamp[3]) or stamp[2] > _MAX_BYTES:
            raise ValueError(f"auth_file {self._path} is not a file of at most {_MAX_BYTES} bytes")
        if stamp[3] & stat.S_IRWXO:
            raise ValueError(
                f"auth_file {self._path} can be read or written by everyone: chmod o-rwx {self._path}"
            )
        try:
            with open(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC), encoding="utf-8") as file:
                return parse_tokens(file.read(_MAX_BYTES + 1))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"auth_file {self._path} cannot be read: {error}") from error
        except ValueError as error:
            raise ValueError(f"auth_file {self._path}: {error}") from None
