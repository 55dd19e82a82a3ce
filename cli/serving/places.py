"""Where `lorikeet serve` answers, and where it puts its files: sockets, the arena, adapters between runs."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from cli.errors import usage_error, why

DEFAULT_TARGET = "127.0.0.1:50051"
"""Where servers answer and clients call, unless told otherwise."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_SHORT = Path("/tmp")  # noqa: S108
_PREFIX = "lorikeet-serve-"
_LOCK = ".serve-lock"


def default_data_dir(model: Path) -> Path:
    """A folder of the user's (XDG) for this model folder. Raises CliError for a user without a home."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():  # The specification has what is not ignored.
        try:
            base = Path.home() / ".local" / "share"
        except RuntimeError as error:
            raise usage_error(
                "this user has no home folder to keep adapters in: name one with --data-dir"
            ) from error
    folder = model.resolve()
    return base / "lorikeet" / f"{folder.name}-{hashlib.sha256(bytes(folder)).hexdigest()[:8]}"


class PrivateFolder:
    """A folder for as long as this process lives, locked so that others can tell whether it still does.

    Raises CliError where none can be made.
    """

    def __init__(self, parent: Path) -> None:
        try:
            self._make(parent)
        except OSError as error:
            raise usage_error(
                f"cannot make a folder in {parent}: {why(error)}; make room, or let this user write there"
            ) from error

    def _make(self, parent: Path) -> None:
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = (self.path / _LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # Another process that starts may have found it before it was locked, and removed it.
            if (self.path / _LOCK).exists():
                return
            self._lock.close()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def runtime_folder() -> PrivateFolder:
    """For sockets. Its path is short: a socket's may have some 100 characters. Raises CliError."""
    parent = _SHORT if os.access(_SHORT, os.W_OK) else _temporary()
    remove_abandoned(parent)
    return PrivateFolder(parent)


def arena_folder(arena_bytes: int) -> PrivateFolder:
    """For the arena: in memory; on macOS, which has no such file system, a temporary one.

    Raises CliError when there is too little shared memory, as in a container with Docker's 64 MB.
    """
    if not (sys.platform == "linux" and os.access(_SHARED_MEMORY, os.W_OK)):
        return PrivateFolder(_temporary())
    remove_abandoned(_SHARED_MEMORY)
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < arena_bytes:
        raise usage_error(
            f"{_SHARED_MEMORY} has {free >> 20} MiB free and the arena takes {arena_bytes >> 20} MiB: lower "
            "store.arena_bytes, set store.arena_dir to a folder on a larger tmpfs, "
            "or give the container more with --shm-size"
        )
    return PrivateFolder(_SHARED_MEMORY)


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise usage_error(
            f"there is no folder for temporary files: make {_SHORT} writable, or name one with TMPDIR"
        ) from error


def remove_abandoned(parent: Path) -> None:
    """Removes what killed processes of this user left behind: folders of ours that nobody has locked."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def reserve(listen: str, held: contextlib.ExitStack) -> str:
    """Finds out, before anything is started, whether `listen` can be had.

    Returns the address with port 0 replaced by a free port, which no other process is given before `held` is
    closed; servers that ask for it by its number get it, also when they start again. Raises CliError.
    """
    if listen.startswith("unix:"):
        return listen
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as closing:
        probe = closing.enter_context(socket.socket(family))
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise usage_error(
                f"cannot listen on {listen}: {why(error)}; choose another with --listen"
            ) from error
        address = f"{listen.rpartition(':')[0]}:{probe.getsockname()[1]}"
        # On Linux one that is bound and does not listen is in no server's way.
        if int(port) == 0 and sys.platform == "linux":
            held.push(closing.pop_all())
        return address


def dial_address(listen: str) -> str:
    """Where a client on this machine reaches a server that listens there: "0.0.0.0" is no address to call."""
    if listen.startswith("unix:"):
        return listen
    host, _, port = listen.rpartition(":")
    return {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, listen)  # noqa: S104
