"""Certificates of servers and clients, as files in PEM."""

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """A server's certificate, and whom it asks for one.

    Args:
        cert: its certificate and the chain up to its authority.
        key: its private key.
        client_ca: authorities whose certificates clients must show; None asks for none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Raises ValueError for a file that cannot be read."""
        pair = (_read("tls_key", self.key), _read("tls_cert", self.cert))
        ca = _read("tls_client_ca", self.client_ca) if self.client_ca is not None else None
        return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """Whom a client trusts and what it shows.

    Args:
        ca: authorities that sign servers' certificates; None takes gRPC's own list.
        cert, key: the client's certificate, where the server asks for one.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises ValueError for a file that cannot be read, or half a pair."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls_cert and tls_key come together: give both or none")
        ca = _read("tls_ca", self.ca) if self.ca is not None else None
        key = _read("tls_key", self.key) if self.key is not None else None
        cert = _read("tls_cert", self.cert) if self.cert is not None else None
        return grpc.ssl_channel_credentials(ca, key, cert)


def server_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """From settings; None for plaintext. Raises ValueError for half of them."""
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise ValueError("tls_cert and tls_key come together, and tls_client_ca needs both")
    return ServerTls(cert=cert, key=key, client_ca=client_ca)


def _read(name: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: {path} cannot be read: {error.strerror}") from error
    if b"-----BEGIN" not in data:
        raise ValueError(f"{name}: {path} is not in PEM format")
    return data
