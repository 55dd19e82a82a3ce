"""What a stop waits for, and what it does not."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from rpc.channel import open_channel
from rpc.errors import LorikeetError, from_rpc
from rpc.server import Server
from tests.support.waiting import WAIT_SECONDS

HOUR = 3600.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.drain(0)


async def error_of(call: Any) -> LorikeetError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asyncio.wait_for(call.read(), WAIT_SECONDS)
    return from_rpc(raised.value)


@pytest.mark.parametrize("known_before", [False, True])
async def test_who_watches_health_is_told_of_the_end_and_let_go(server: Server, known_before: bool) -> None:
    target = await server.start("127.0.0.1:0")
    await server.set_serving(True)
    async with open_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        if known_before:
            await server.set_serving(False)
            assert (await watch.read()).status == NOT_SERVING
        await asyncio.wait_for(server.drain(HOUR), WAIT_SECONDS)
        if not known_before:
            assert (await watch.read()).status == NOT_SERVING
        assert (await error_of(watch)).reason == "SHUTTING_DOWN"


async def test_who_watches_hears_of_each_change_and_of_services_that_there_are_not(server: Server) -> None:
    target = await server.start("127.0.0.1:0")
    async with open_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch, other = (stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "other"))
        assert (await other.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        for serving, status in ((False, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
            await server.set_serving(serving)
            assert (await watch.read()).status == status
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        watch.cancel()
        other.cancel()


@pytest.mark.parametrize("has_asked", [False, True])
async def test_a_tool_that_looks_at_the_api_holds_up_no_stop(server: Server, has_asked: bool) -> None:
    target = await server.start("127.0.0.1:0")
    async with open_channel(target) as channel:
        call = cast("Any", reflection_pb2_grpc.ServerReflectionStub)(channel).ServerReflectionInfo()
        if has_asked:
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            assert (await call.read()).list_services_response.service
        await asyncio.wait_for(server.drain(HOUR), WAIT_SECONDS)
        assert (await error_of(call)).code is grpc.StatusCode.UNAVAILABLE
