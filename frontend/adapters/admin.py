"""What AdapterService does: passes calls on to the store, with their deadlines, and its statuses back."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from frontend.adapters.catalog import Catalog
from frontend.adapters.references import parse_adapter
from lorikeet.v1 import adapters_pb2, store_pb2_grpc
from rpc.errors import LorikeetError, failed_precondition, from_rpc, unavailable

Response = TypeVar("Response")
Moved = TypeVar("Moved", adapters_pb2.UnloadAdapterResponse, adapters_pb2.RollbackAdapterResponse)

# The store has waited for this frontend's acknowledgement; this is for a stream that was lost in between.
_CATCH_UP_SECONDS = 2.0
# For a client that still sends when its upload is refused: one that is answered while it writes may miss why.
_LAST_SECONDS = 0.5


class AdapterAdmin:
    """The admin API on top of the store's catalog.

    Args:
        stub: of the store's CatalogService; None where there is no store.
        catalog: of this frontend, which an answer about a load waits for.
        hint: tells the executor that a digest will be asked for soon; False where it could not.
    """

    def __init__(
        self,
        *,
        stub: store_pb2_grpc.CatalogServiceStub | None,
        catalog: Catalog,
        hint: Callable[[str], bool] = lambda digest: False,
    ) -> None:
        self._stub = stub
        self._catalog = catalog
        self._hint = hint
        self._watches: set[grpc.aio.Call] = set()
        self._closed = False

    @property
    def store(self) -> store_pb2_grpc.CatalogServiceStub:
        """The store. Raises FAILED_PRECONDITION where there is none."""
        if self._stub is None:
            raise failed_precondition(
                "NO_ADAPTER_STORE",
                "this server runs without an adapter store: start it with one to load adapters",
            )
        return self._stub

    async def load(
        self, request: adapters_pb2.LoadAdapterRequest, remaining_seconds: float | None
    ) -> adapters_pb2.LoadAdapterResponse:
        """Loads an adapter; when this returns, this frontend serves it."""
        response = await self.unary(self.store.Load, request, remaining_seconds)
        await self._catch_up(response.adapter)
        return response

    async def upload(
        self, messages: AsyncIterator[adapters_pb2.UploadAdapterRequest], remaining_seconds: float | None
    ) -> adapters_pb2.LoadAdapterResponse:
        """Passes an upload on, a message at a time; when this returns, this frontend serves it."""
        call: Any = self.store.Upload(timeout=remaining_seconds)
        relay = asyncio.create_task(_relay(messages, call))
        answer = asyncio.ensure_future(_answer(call))
        try:
            # The store may refuse half-way, the client leave: whichever is first ends the other.
            await asyncio.wait({relay, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                relay.result()
            elif answer.exception() is not None:
                await asyncio.wait({relay}, timeout=_LAST_SECONDS)
            response = await answer
        except grpc.aio.AioRpcError as error:
            raise _store_error(error) from None
        finally:
            relay.cancel()
            answer.cancel()
            call.cancel()
            await asyncio.gather(relay, answer, return_exceptions=True)
        await self._catch_up(response.adapter)
        return response

    async def prefetch(
        self, request: adapters_pb2.PrefetchAdapterRequest, remaining_seconds: float | None
    ) -> adapters_pb2.PrefetchAdapterResponse:
        """Brings an adapter into the store's memory and, where there is room, to the GPU."""
        # An executor that is told tells the store, unless the adapter is with it already.
        with contextlib.suppress(LorikeetError):
            if self._hint(self._catalog.resolve(parse_adapter(request.adapter))):
                return adapters_pb2.PrefetchAdapterResponse()
        # A name that only the store knows so far, or nobody to tell.
        return await self.unary(self.store.Prefetch, request, remaining_seconds)

    async def move(
        self, call: Callable[..., Awaitable[Moved]], request: Message, remaining_seconds: float | None
    ) -> Moved:
        """Passes on what moves or removes a name; when this returns, this frontend acts by it."""
        response = await self.unary(call, request, remaining_seconds)
        await self._catch_up(response.adapter)
        return response

    async def _catch_up(self, changed: adapters_pb2.Adapter) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await self._catalog.reach(changed.revision)

    async def unary(
        self,
        call: Callable[..., Awaitable[Response]],
        request: Message,
        remaining_seconds: float | None,
    ) -> Response:
        """Passes a call on. Raises the store's status as it is."""
        try:
            return await call(request, timeout=remaining_seconds)
        except grpc.aio.AioRpcError as error:
            raise _store_error(error) from None

    async def watch(
        self, request: adapters_pb2.WatchAdaptersRequest
    ) -> AsyncGenerator[adapters_pb2.AdapterEvent]:
        """The store's events. A slow client slows the store's stream down, which the store bounds."""
        if self._closed:
            raise _shutting_down()
        call = self.store.Watch(request)
        self._watches.add(call)
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise _store_error(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or task is None or task.cancelling():
                raise
        finally:
            self._watches.discard(call)
            call.cancel()
        if self._closed:
            raise _shutting_down()

    def end_watches(self) -> None:
        """Ends all watching, which a shutdown would wait for for ever, and refuses it from now on."""
        self._closed = True
        for call in self._watches:
            call.cancel()


async def _relay(messages: AsyncIterator[adapters_pb2.UploadAdapterRequest], call: Any) -> None:
    is_wanted = True
    async for message in messages:
        # Once the store has answered, or is gone, the rest is read and dropped; the answer says which it is.
        is_wanted = is_wanted and await _write(call, message)
    if is_wanted:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.done_writing()


async def _write(call: Any, message: adapters_pb2.UploadAdapterRequest) -> bool:
    """Waits for room; False when nothing is read any more."""
    try:
        await call.write(message)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False
    return True


async def _answer(call: Any) -> adapters_pb2.LoadAdapterResponse:
    return await call


def _shutting_down() -> LorikeetError:
    return unavailable("SHUTTING_DOWN", "the frontend is shutting down: watch again when it is back")


def _store_error(error: grpc.aio.AioRpcError) -> LorikeetError:
    read = from_rpc(error)
    if read.code is grpc.StatusCode.UNAVAILABLE and read.reason == read.code.name:
        # Not from the store itself, which gives reasons, but from a connection that failed.
        return unavailable("STORE_AWAY", f"the adapter store cannot be reached: retry later ({read.message})")
    return read
