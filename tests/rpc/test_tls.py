"""A server with certificates, and clients that it should and should not let in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rpc.channel import open_channel
from rpc.server import Server
from rpc.tls import ClientTls, ServerTls, server_tls
from tests.support.certificates import Pki
from tests.support.waiting import WAIT_SECONDS


@pytest.fixture(scope="module")
def pkis(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pki, Pki]:
    folder = tmp_path_factory.mktemp("pki")
    return Pki(folder / "ours"), Pki(folder / "strangers")


@asynccontextmanager
async def serving(tls: ServerTls) -> AsyncIterator[str]:
    server = Server()
    address = await server.start("127.0.0.1:0", tls.credentials())
    try:
        yield address
    finally:
        await server.drain(0)


async def code_of(address: str, tls: ClientTls | None) -> grpc.StatusCode:
    channel = open_channel(address, tls.credentials() if tls is not None else None)
    try:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_SECONDS)
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await channel.close()
    return grpc.StatusCode.OK


async def test_a_client_that_trusts_the_authority_gets_in(pkis: tuple[Pki, Pki]) -> None:
    ours, strangers = pkis
    async with serving(ServerTls(cert=ours.cert, key=ours.key)) as address:
        assert await code_of(address, ClientTls(ca=ours.ca)) is grpc.StatusCode.OK
        assert await code_of(address, ClientTls(ca=strangers.ca)) is grpc.StatusCode.UNAVAILABLE
        assert await code_of(address, None) is grpc.StatusCode.UNAVAILABLE


async def test_clients_show_a_certificate_where_one_is_asked_for(pkis: tuple[Pki, Pki]) -> None:
    ours, strangers = pkis
    async with serving(ServerTls(cert=ours.cert, key=ours.key, client_ca=ours.ca)) as address:
        shown = ClientTls(ca=ours.ca, cert=ours.client_cert, key=ours.client_key)
        assert await code_of(address, shown) is grpc.StatusCode.OK
        assert await code_of(address, ClientTls(ca=ours.ca)) is grpc.StatusCode.UNAVAILABLE
        foreign = ClientTls(ca=ours.ca, cert=strangers.client_cert, key=strangers.client_key)
        assert await code_of(address, foreign) is grpc.StatusCode.UNAVAILABLE


def test_half_a_setting_is_refused(pkis: tuple[Pki, Pki], tmp_path: Path) -> None:
    ours, _ = pkis
    assert server_tls(None, None, None) is None
    for half in ((ours.cert, None, None), (None, ours.key, None), (None, None, ours.ca)):
        with pytest.raises(ValueError, match="tls_cert and tls_key"):
            server_tls(*half)
    with pytest.raises(ValueError, match="tls_cert and tls_key"):
        ClientTls(cert=ours.cert).credentials()
    with pytest.raises(ValueError, match="cannot be read"):
        ServerTls(cert=ours.cert, key=tmp_path / "none").credentials()
    (tmp_path / "der").write_bytes(b"\x30\x82")
    with pytest.raises(ValueError, match="PEM"):
        ClientTls(ca=tmp_path / "der").credentials()


def test_a_pair_that_only_openssl_finds_too_weak_is_taken(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=1024)
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")]), datetime.now(UTC)
    cert = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    cert = cert.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(cert.sign(key, hashes.SHA256()).public_bytes(pem))
    key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    ServerTls(cert=cert_file, key=key_file).credentials()


def test_a_pair_that_does_not_belong_together_is_refused(pkis: tuple[Pki, Pki], tmp_path: Path) -> None:
    ours, strangers = pkis
    garbled = tmp_path / "garbled.pem"
    garbled.write_text("-----BEGIN CERTIFICATE-----\ngarbled\n-----END CERTIFICATE-----\n")
    for cert, key, said in (
        (ours.cert, strangers.key, "is not the key of tls_cert"),
        (garbled, ours.key, "are no certificate and its key"),
        (ours.cert, garbled, "are no certificate and its key"),
    ):
        with pytest.raises(ValueError, match=said):
            ServerTls(cert=cert, key=key).credentials()
        with pytest.raises(ValueError, match=said):
            ClientTls(cert=cert, key=key).credentials()
    with pytest.raises(ValueError, match=r"tls_client_ca: .* holds no certificates"):
        ServerTls(cert=ours.cert, key=ours.key, client_ca=garbled).credentials()
