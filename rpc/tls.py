"""Certificates of servers and clients, as files in PEM."""

import ssl
from contextlib import suppress
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
        """Raises ValueError for a file that cannot be read, or a key that is not the certificate's."""
        pair = (_read("tls_key", self.key), _read("tls_cert", self.cert))
        _check_pair(self.cert, self.key)
        ca = _read_authorities("tls_client_ca", self.client_ca) if self.client_ca is not None else None
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
        """Raises ValueError for a file that cannot be read, half a pair, or a key of another certificate."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls_cert and tls_key come together: give both or none")
        ca = _read_authorities("tls_ca", self.ca) if self.ca is not None else None
        key = _read("tls_key", self.key) if self.key is not None else None
        cert = _read("tls_cert", self.cert) if self.cert is not None else None
        if self.cert is not None and self.key is not None:
            _check_pair(self.cert, self.key)
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


def _check_pair(cert: Path, key: Path) -> None:
    # gRPC would not say why it cannot listen, or find out at the first connection.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with suppress(ssl.SSLError):
        # Which keys are too short is gRPC's to say.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    try:
        # Without a password, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"tls_key: {key} is not the key of tls_cert, {cert}") from error
        raise ValueError(
            f"tls_cert {cert} and tls_key {key} are no certificate and its key, not encrypted"
        ) from error


def _read_authorities(name: str, path: Path) -> bytes:
    data = _read(name, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except OSError as error:
        raise ValueError(f"{name}: {path} holds no certificates of authorities") from error
    return data
