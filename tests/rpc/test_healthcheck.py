"""The containers' health check tells a serving server from a draining and from a missing one."""

import asyncio

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


async def test_unix_socket_left_by_a_killed_server_is_taken_over(tmp_path) -> None:
    address = f"unix:{tmp_path}/service.sock"
    for _ in range(2):  # the first server is never stopped properly
        server = Server()
        assert await server.start(address) == address
        await server.set_serving(True)
        assert await asyncio.to_thread(is_serving, address)
    await server.drain(0)
