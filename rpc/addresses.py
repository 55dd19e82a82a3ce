"""Addresses of services, as settings spell them."""


def check_address(name: str, address: str) -> None:
    """Raises ValueError, naming the setting, unless `address` is `host:port` or `unix:/path`."""
    if address.startswith("unix:") and len(address) > len("unix:"):
        return
    if not _is_tcp(address):
        raise ValueError(f"{name} is {address!r}: give host:port or unix:/path")


def check_tcp_address(name: str, address: str) -> None:
    """Raises ValueError, naming the setting, unless `address` is `host:port`."""
    if not _is_tcp(address):
        raise ValueError(f"{name} is {address!r}: give host:port")


def _is_tcp(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isdigit() and int(port) <= 65_535
