"""Addresses of services, as settings spell them."""

import os
import sys

_MOST_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""Of a socket's path."""


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


def _is_tcp(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isdecimal() and int(port) <= 65_535
