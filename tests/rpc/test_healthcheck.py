"""The containers' health check tells a serving server from a draining and from a missing one."""

import asyncio
import socket
from pathlib import Path

from rpc.healthcheck import is_serving
from rpc.server import Server


async def test_health_check_follows_the_server() -> None:
    server = Server()
    target = await server.start("127.0.0.1:0")
    assert not await asyncio.to_thread(is_serving, target)
    await server.set_serving(True)
    assert await asyncio.to_thread(is_serving, target)
    await server.drain(0)
    assert not await asyncio.to_thread(is_serving, target)


async def test_unix_socket_left_by_a_killed_server_is_taken_over(tmp_path: Path) -> None:
    stale = tmp_path / "service.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(stale))
    assert stale.is_socket()
    server = Server()
    assert await server.start(f"unix:{stale}") == f"unix:{stale}"
    await server.set_serving(True)
    assert await asyncio.to_thread(is_serving, f"unix:{stale}")
    await server.drain(0)
