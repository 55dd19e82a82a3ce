"""Addresses that cannot be bound: an OSError where that may pass, for which a supervisor tries again."""

import socket
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from rpc.addresses import try_binding
from rpc.metrics import MetricsServer
from rpc.server import Server


async def gather_nothing() -> list[Metric]:
    return []


async def test_an_address_that_never_can_be_bound_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # The first is kept for documentation (RFC 5737): no machine has it.
    for address in ("192.0.2.1:0", f"unix:{tmp_path / 'file' / 'x.sock'}"):
        with pytest.raises(ValueError, match=f"cannot listen on {address}: .*; choose another address"):
            await Server().start(address)
    with pytest.raises(ValueError, match=r"\(metrics_listen\) on 192\.0\.2\.1:0: "):
        await MetricsServer(gather_nothing).start("192.0.2.1:0")


def test_a_host_of_two_addresses_is_in_use_where_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        places = [("192.0.2.1", port), ("127.0.0.1", port)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", place) for place in places]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(OSError, match="in use"):
            try_binding(f"localhost:{port}")
    try_binding(f"localhost:{port}")


async def test_an_address_in_use_may_be_free_later(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for address in (f"127.0.0.1:{taken.getsockname()[1]}", f"unix:{tmp_path / 'file'}"):
            (tmp_path / "file").touch()
            with pytest.raises(OSError, match=f"cannot listen on {address}: .*in use; choose another"):
                await Server().start(address)
