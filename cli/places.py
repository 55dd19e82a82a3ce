"""Where `lorikeet serve` puts its files: sockets, the arena, adapters between runs."""

import hashlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from cli.errors import usage_error

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


def default_data_dir(model: Path) -> Path:
    """A folder of the user's (XDG) for this model folder."""
    home = os.environ.get("XDG_DATA_HOME")
    base = Path(home) if home else Path.home() / ".local" / "share"
    folder = model.resolve()
    return base / "lorikeet" / f"{folder.name}-{hashlib.sha256(bytes(folder)).hexdigest()[:8]}"


def make_runtime_dir() -> Path:
    """A private folder for sockets. Its path is short: a socket's may have some 100 characters."""
    return Path(tempfile.mkdtemp(prefix="lorikeet-", dir="/tmp" if os.path.isdir("/tmp") else None))  # noqa: S108


def make_arena_dir(arena_bytes: int) -> Path:
    """A private folder in memory for the arena; on macOS, which has no such file system, a temporary one.

    Raises CliError when there is too little shared memory, as in a container with Docker's 64 MB.
    """
    if not (sys.platform == "linux" and os.access(_SHARED_MEMORY, os.W_OK)):
        return Path(tempfile.mkdtemp(prefix="lorikeet-arena-"))
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < arena_bytes:
        raise usage_error(
            f"{_SHARED_MEMORY} has {free >> 20} MiB free and the arena takes {arena_bytes >> 20} MiB: lower "
            "store.arena_bytes, set store.arena_dir to a folder on a larger tmpfs, "
            "or give the container more with --shm-size"
        )
    return Path(tempfile.mkdtemp(prefix="lorikeet-", dir=_SHARED_MEMORY))


def reserve(listen: str) -> str:
    """Finds out, before anything is started, whether `listen` can be had.

    Returns the address with port 0 replaced by a free port. Raises CliError.
    """
    if listen.startswith("unix:"):
        return listen
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise usage_error(f"cannot listen on {listen}: {error}; choose another with --listen") from error
        return f"{listen.rpartition(':')[0]}:{probe.getsockname()[1]}"


def dial_address(listen: str) -> str:
    """Where a client on this machine reaches a server that listens there: "0.0.0.0" is no address to call."""
    if listen.startswith("unix:"):
        return listen
    host, _, port = listen.rpartition(":")
    return {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, listen)  # noqa: S104
