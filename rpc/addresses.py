"""Addresses of services, as settings spell them."""

import errno
import os
import socket
import sys

_MOST_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""Of a socket's path."""

_LASTING = {
    errno.EACCES,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
    errno.EEXIST,
    errno.EINVAL,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
    socket.EAI_NONAME,
}
"""Why an address cannot be bound, where that does not pass by itself, as a port of another process does."""


def check_address(name: str, address: str) -> None:
    """Raises ValueError, naming the setting, unless `address` is `host:port` or `unix:/path`."""
    path = os.fsencode(address.removeprefix("unix:"))
    if address.startswith("unix:") and path:
        if len(path) > _MOST_PATH_BYTES:
            raise ValueError(f"{name} is {address!r}: a socket's path has {_MOST_PATH_BYTES} bytes at most")
        return
    if not _is_tcp(address):
        raise ValueError(f"{name} is {address!r}: give host:port or unix:/path")


def check_tcp_address(name: str, address: str) -> None:
    """Raises ValueError, naming the setting, unless `address` is `host:port`."""
    if not _is_tcp(address):
        raise ValueError(f"{name} is {address!r}: give host:port")


def binding_error(what: str, error: OSError) -> OSError | ValueError:
    """`error` from binding an address, its message after `what`: a ValueError where no later try helps."""
    kind = ValueError if error.errno in _LASTING else OSError
    return kind(f"{what}: {error.strerror or error}; choose another address")


def try_binding(address: str) -> None:
    """Binds `host:port`, or `unix:/path` where no file is, for a moment. Raises OSError with the reason.

    Of a host's several addresses one is enough, as it is for gRPC.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(path)
            os.unlink(path)
        return
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    errors: list[OSError] = []
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                return
        except OSError as error:
            errors.append(error)
    raise min(errors, key=lambda error: error.errno in _LASTING)


def _is_tcp(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isdecimal() and int(port) <= 65_535
