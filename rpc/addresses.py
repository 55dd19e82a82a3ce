"""Addresses of services, as settings spell them."""


def check_address(name: str, address: str) -> None:
    """Raises ValueError, naming the setting, unless `address` is `host:port` or `unix:/path`."""
    if address.startswith("unix:") and len(address) > len("unix:"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{name} is {address!r}: give host:port or unix:/path")
