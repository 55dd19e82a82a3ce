"""Errors survive the wire, and nothing of a crash reaches a client."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lorikeet.v1 import generation_pb2, generation_pb2_grpc
from rpc.channel import MAX_MESSAGE_BYTES, open_channel
from rpc.errors import (
    LorikeetError,
    from_rpc,
    from_status,
    invalid_argument,
    resource_exhausted,
    to_status,
    unavailable,
)
from rpc.server import Server
from tests.support.waiting import WAIT_SECONDS

SERVICE = "lorikeet.v1.GenerationService"


class Misbehaving(generation_pb2_grpc.GenerationServiceServicer):
    """Fails in the way that the request's text names."""

    async def Tokenize(self, request, context):  # noqa: N802
        if request.text == "known":
            raise resource_exhausted("QUEUE_FULL", "wait a little", retry_after=0.25, queue="waiting")
        if request.text.startswith("quote "):
            text = bytes.fromhex(request.text.removeprefix("quote ")).decode("utf-16", "surrogatepass")
            raise invalid_argument("QUOTED", text, text=text)
        if request.text == "cancel":
            raise asyncio.CancelledError
        if request.text == "gone":
            raise grpc.aio.InternalError('Failed "execute_batch"')
        raise RuntimeError("secret text")

    async def Generate(self, request, context) -> AsyncIterator[generation_pb2.GenerateResponse]:  # noqa: N802
        yield generation_pb2.GenerateResponse(text="first")
        raise unavailable("EXECUTOR_GONE", "the executor is gone")


@pytest.fixture
async def target():
    server = Server()
    server.add(SERVICE, generation_pb2_grpc.add_GenerationServiceServicer_to_server, Misbehaving())
    yield await server.start("127.0.0.1:0")
    await server.drain(0)


async def _tokenize_error(target: str, text: str) -> LorikeetError:
    async with open_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Tokenize(generation_pb2.TokenizeRequest(text=text), timeout=WAIT_SECONDS)
    return from_rpc(caught.value)


def test_status_round_trip() -> None:
    error = resource_exhausted("QUEUE_FULL", "wait", retry_after=1.5, queue="waiting")
    back = from_status(to_status(error))
    assert (back.code, back.reason, back.message) == (error.code, error.reason, error.message)
    assert back.metadata == {"queue": "waiting"}
    assert back.retry_after == 1.5


@pytest.mark.parametrize("text", ["x" * 100_000, "\N{PARROT}" * 100_000, "ok \ud800"])
async def test_a_message_of_any_length_and_content_arrives(target: str, text: str) -> None:
    error = await _tokenize_error(target, "quote " + text.encode("utf-16", "surrogatepass").hex())
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "QUOTED")
    assert error.message[:2] == text[:2]
    assert error.metadata["text"][:2] == text[:2]


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x02\xff\xfe"])
async def test_what_is_no_message_is_an_invalid_argument(target: str, data: bytes) -> None:
    async with open_channel(target) as channel:
        tokenize = channel.unary_unary(f"/{SERVICE}/Tokenize")
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await tokenize(data, timeout=WAIT_SECONDS)
        generate = channel.unary_stream(f"/{SERVICE}/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as streaming:
            await generate(data, timeout=WAIT_SECONDS).read()
    for caught in (unary, streaming):
        assert from_rpc(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT
        assert from_rpc(caught.value).reason == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("answers", ["unary", "stream"])
async def test_what_is_no_message_of_a_stream_is_an_invalid_argument(answers: str) -> None:
    taken: list[str] = []

    async def take(requests: AsyncIterator[generation_pb2.TokenizeRequest], context: Any):
        async for request in requests:
            taken.append(request.text)  # noqa: PERF401 - also what comes before an error

    kind = getattr(grpc, f"stream_{answers}_rpc_method_handler")
    decode = generation_pb2.TokenizeRequest.FromString
    handlers = grpc.method_handlers_generic_handler("test", {"Take": kind(take, decode, bytes)})
    server = Server()
    server.add("test", lambda _, at: at.add_generic_rpc_handlers((handlers,)), None)
    target = await server.start("127.0.0.1:0")
    async with open_channel(target) as channel:
        for bad in (b"\xff", b"\x0a\x02\xff\xfe"):
            call = getattr(channel, f"stream_{answers}")("/test/Take")(timeout=WAIT_SECONDS)
            await call.write(generation_pb2.TokenizeRequest(text="good").SerializeToString())
            await call.write(bad)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (call.read() if answers == "stream" else call)
            assert from_rpc(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT
            assert from_rpc(caught.value).reason == "MALFORMED_MESSAGE"
    await server.drain(0)
    assert taken == ["good"] * 2


async def test_known_error_arrives_with_reason_and_delay(target: str) -> None:
    error = await _tokenize_error(target, "known")
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (error.reason, error.message, error.retry_after) == ("QUEUE_FULL", "wait a little", 0.25)


@pytest.mark.parametrize("text", ["crash", "cancel"])
async def test_unknown_error_is_internal_and_says_nothing(target: str, text: str) -> None:
    error = await _tokenize_error(target, text)
    assert error.code is grpc.StatusCode.INTERNAL
    assert "secret" not in error.message
    assert error.metadata["incident"] in error.message


class _Request:
    """A message that can be watched."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        _seen.append(weakref.ref(self))


_seen: list[weakref.ref[_Request]] = []


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_nothing_of_a_refused_call_is_kept(kind: str) -> None:
    def keep(request: _Request) -> None:
        held = request  # noqa: F841 - in the frame that the error's traceback has
        raise invalid_argument("BAD", "it is bad")

    async def answer(request: _Request, context: Any) -> None:
        keep(request)

    async def answers(request: _Request, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        keep(request)

    handler = {"unary_unary": answer, "unary_stream": answers}[kind]
    method = getattr(grpc, f"{kind}_rpc_method_handler")(handler, _Request, bytes)
    server = Server()
    handlers = grpc.method_handlers_generic_handler("test", {"Call": method})
    server.add("test", lambda _, at: at.add_generic_rpc_handlers((handlers,)), None)
    target = await server.start("127.0.0.1:0")
    _seen.clear()
    gc.disable()
    try:
        async with open_channel(target) as channel:
            call: Any = getattr(channel, kind)("/test/Call")
            for _ in range(3):
                begun = call(b"x", timeout=WAIT_SECONDS)
                with pytest.raises(grpc.aio.AioRpcError):
                    await (_all(begun) if kind == "unary_stream" else begun)
        await server.drain(0)
        assert [ref() for ref in _seen] == [None] * 3
    finally:
        gc.enable()


async def _all(call: Any) -> None:
    async for _ in call:
        pass


async def test_an_answer_that_cannot_be_sent_is_no_incident(
    target: str, caplog: pytest.LogCaptureFixture
) -> None:
    """grpc.aio raises this from `write` when a client's connection breaks meanwhile."""
    assert (await _tokenize_error(target, "gone")).reason == "NOT_SENT"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_stream_error_comes_after_its_messages(target: str) -> None:
    async with open_channel(target) as channel:
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(generation_pb2.GenerateRequest())
        assert (await call.read()).text == "first"
        with pytest.raises(grpc.RpcError) as caught:
            await call.read()
    assert from_rpc(caught.value).reason == "EXECUTOR_GONE"


async def test_message_over_the_limit_is_refused_and_the_server_goes_on(target: str) -> None:
    error = await _tokenize_error(target, "x" * (MAX_MESSAGE_BYTES + 1))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await _tokenize_error(target, "known")).reason == "QUEUE_FULL"


async def test_health_follows_serving(target: str) -> None:
    async with open_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_lists_the_services(target: str) -> None:
    async with open_channel(target) as channel:
        # The package types its stub for sync channels only.
        stub = cast("Any", reflection_pb2_grpc.ServerReflectionStub)(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = [service.name async for answer in call for service in answer.list_services_response.service]
    assert SERVICE in names
    assert "grpc.health.v1.Health" in names


async def test_method_that_nobody_wrote_is_unimplemented(target: str) -> None:
    async with open_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.GetModel(generation_pb2.GetModelRequest())
    assert from_rpc(caught.value).code is grpc.StatusCode.UNIMPLEMENTED
