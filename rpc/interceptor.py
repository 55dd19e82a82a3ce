"""One place where exceptions of handlers become gRPC statuses."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from rpc.errors import LorikeetError, internal, invalid_argument, to_status, unavailable, unimplemented
from rpc.handlers import WrappingInterceptor

log = logging.getLogger(__name__)


class ErrorInterceptor(WrappingInterceptor):
    """Turns a `LorikeetError` into a rich status, and anything else into INTERNAL without leaking its text.

    grpc.aio sends the text of an uncaught exception to the client, and a handler that raises a CancelledError
    of its own leaves the client waiting until its deadline; neither gets past here.
    """

    def __init__(self) -> None:
        super().__init__(_wrap)


def _wrap(method: str, handler: Any) -> grpc.RpcMethodHandler:
    decoded = _DecodedStream if handler.request_streaming else _decoded
    if handler.response_streaming:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        factory = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        wrapped = _wrap_streaming(method, inner, decoded)
    else:
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        factory = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        wrapped = _wrap_unary(method, inner, decoded)
    deserializer = handler.request_deserializer
    if deserializer is not None:
        deserializer = _decode_or_tell(deserializer)
    return factory(wrapped, deserializer, handler.response_serializer)


class _Malformed:
    """Stands for a request that is not a message of its type.

    grpc.aio logs what a deserializer raises, at length, and answers UNKNOWN.
    """


def _decode_or_tell(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return _Malformed()

    return decode


def _decoded(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise invalid_argument(
            "MALFORMED_MESSAGE",
            "the request is not a message of the method's type, or a text in it is not UTF-8: "
            "build it with the published protos",
        )
    return request


class _DecodedStream:
    """The requests of a stream; raises in the place of each that is none, and goes on after it."""

    def __init__(self, requests: AsyncIterable[Any]) -> None:
        self._requests = aiter(requests)

    def __aiter__(self) -> "_DecodedStream":
        return self

    async def __anext__(self) -> Any:
        return _decoded(await anext(self._requests))


def _wrap_unary(method: str, inner: Any, decoded: Callable[[Any], Any]) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await inner(decoded(request), context)
        except BaseException as error:
            status = _status_of(method, error)
        return await _abort(context, status)

    return call


def _wrap_streaming(method: str, inner: Any, decoded: Callable[[Any], Any]) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> None:
        # Written with context.write: one coroutine hop a message less than an async generator around another.
        try:
            responses = inner(decoded(request), context)
            if isinstance(responses, AsyncIterator):
                async for response in responses:
                    await context.write(response)
            else:
                await responses
            return
        except BaseException as error:
            status = _status_of(method, error)
        await _abort(context, status)

    return call


async def _abort(context: grpc.aio.ServicerContext, status: Any) -> None:
    """Ends a call; to be called when its error has been handled, and returned after.

    gRPC keeps what its abort raises with the call, and raises it again once the handler has returned. Were it
    to come from here, its traceback and the error would tie call, handler and request together, of many
    megabytes perhaps, until the garbage collector comes by.
    """
    try:
        await context.abort(status.code, status.details, status.trailing_metadata)
    except grpc.aio.AbortError as raised:
        raised.__traceback__ = None


def _status_of(method: str, error: BaseException) -> Any:
    """What a client is told of an error. Raises it where nobody is to be told."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error
        error = RuntimeError("a handler leaked a cancellation of its own")
    elif not isinstance(error, Exception):
        raise error
    if isinstance(error, NotImplementedError):
        error = unimplemented(
            "NOT_IMPLEMENTED", f"this server does not implement {method}: it may be an older one"
        )
    if isinstance(error, grpc.aio.InternalError):
        # What waited to be sent when the client's connection broke. Most often nobody hears of this, either.
        log.debug("an answer of %s could not be sent", method, exc_info=error)
        error = unavailable("NOT_SENT", "the answer could not be sent: ask again")
    if not isinstance(error, LorikeetError):
        incident = uuid.uuid4().hex[:12]
        log.error("incident %s in %s", incident, method, exc_info=error)
        error = internal(
            "INTERNAL", f"internal error; the service's log has it as incident {incident}", incident=incident
        )
    return rpc_status.to_status(to_status(error))
