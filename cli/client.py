"""A connection to a frontend, and its errors in words."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc

from cli.errors import CliError, usage_error
from cli.interrupts import end_in_order, waking
from cli.standard_streams import while_read
from lorikeet.v1 import adapters_pb2, adapters_pb2_grpc, generation_pb2_grpc
from rpc.channel import open_channel
from rpc.errors import LorikeetError, from_rpc
from rpc.tls import ClientTls

T = TypeVar("T")

# Seconds: of much more, gRPC makes a time in the past.
_FOR_EVER = 1e9

# What gRPC says of a connection that was there and went.
_LOST = ("Socket closed", "Connection reset", "Broken pipe", "GOAWAY")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the frontend is, and how long a call may take.

    Args:
        target: `host:port` or `unix:/path`.
        timeout: seconds for a whole call; 0 waits for ever.
        token: shown with each call; empty shows none.
        tls_ca: authorities to trust; None speaks plaintext.
        tls_cert, tls_key: what to show where the server asks for a certificate.
    """

    target: str
    timeout: float
    token: str = field(default="", repr=False)
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def deadline(self) -> float | None:
        return self.timeout if 0 < self.timeout < _FOR_EVER else None

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel that speaks TLS; None for plaintext. Raises CliError."""
        if self.tls_ca is None:
            if self.tls_cert is not None or self.tls_key is not None:
                raise usage_error("a client's certificate needs TLS: give --tls-ca too")
            return None
        try:
            return ClientTls(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key).credentials()
        except ValueError as error:
            raise usage_error(str(error)) from error


class Client:
    """The public services over one channel. Opened inside a running event loop."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.channel = open_channel(connection.target, connection.credentials())
        self.generation: generation_pb2_grpc.GenerationServiceStub = self._with_token(
            generation_pb2_grpc.GenerationServiceStub(self.channel)
        )
        self.adapters: adapters_pb2_grpc.AdapterServiceStub = self._with_token(
            adapters_pb2_grpc.AdapterServiceStub(self.channel)
        )

    async def close(self) -> None:
        await self.channel.close()

    def _with_token(self, stub: Any) -> Any:
        token = self.connection.token
        return _TokenStub(stub, token) if token else stub


class _TokenStub:
    """A stub whose calls show a token."""

    def __init__(self, stub: Any, token: str) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {token}"),)

    def __getattr__(self, name: str) -> Any:
        return partial(getattr(self._stub, name), metadata=self._metadata)


def run(
    connection: Connection, body: Callable[[Client], Coroutine[Any, Any, T]], *, is_for_reader: bool = False
) -> T:
    """Runs `body` with a connected client. Raises CliError for every failure of a call.

    With `is_for_reader` only as long as somebody reads stdout: it is done for nothing else.
    """

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        client = Client(connection)
        with waking(task.get_loop()), while_read(task) if is_for_reader else contextlib.nullcontext():
            try:
                return await body(client)
            finally:
                await client.close()

    end_in_order()
    try:
        return asyncio.run(main())
    except grpc.RpcError as error:
        raise explain(from_rpc(error), connection) from error


def explain(error: LorikeetError, connection: Connection) -> CliError:
    """The error for the user: a service's own words, or ours where only the transport spoke."""
    message = error.message
    # Services of ours always name a reason; without one the status comes from gRPC itself.
    if error.reason == error.code.name:
        message = _transport_message(error, connection)
    elif error.retry_after is not None:
        message += f" (may be retried in {error.retry_after:g} s)"
    return CliError(message, code=error.code.name, reason=error.reason)


def _transport_message(error: LorikeetError, connection: Connection) -> str:
    target = connection.target
    was_met = "failed to connect" not in error.message
    match error.code:
        case grpc.StatusCode.UNAVAILABLE if "handshake failed" in error.message.lower():
            return (
                f"there is no TLS with {target}: leave out --tls-ca where the server speaks none, otherwise "
                f"name the authority of its certificate ({error.message})"
            )
        case grpc.StatusCode.UNAVAILABLE if "HTTP/2" in error.message:
            return f"what answers at {target} speaks no gRPC: give a frontend's address ({error.message})"
        case grpc.StatusCode.UNAVAILABLE if not was_met and _is_lost(error):
            return (
                f"{target} hangs up: where it speaks TLS, give --tls-ca; where it asks for a certificate, "
                f"--tls-cert and --tls-key ({error.message})"
            )
        case grpc.StatusCode.UNAVAILABLE if _is_lost(error):
            return f"{target} went away before the answer was complete: ask again ({error.message})"
        case grpc.StatusCode.UNAVAILABLE:
            return (
                f"nothing answers at {target}: start a server with `lorikeet serve`, or give its address "
                f"with --target ({error.message})"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in error.message:
            return f"the request, or its answer, is too large for one message ({error.message})"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no complete answer within {connection.timeout:g} s: allow more with --timeout"
        case grpc.StatusCode.UNIMPLEMENTED:
            return (
                f"{target} does not offer this call: is it a frontend of this version and, for adapters, "
                "its admin address?"
            )
        case _:
            return error.message


def _is_lost(error: LorikeetError) -> bool:
    return any(word in error.message for word in _LOST)


async def all_adapters(client: Client) -> AsyncIterator[adapters_pb2.Adapter]:
    """Every adapter, page after page. Raises grpc.RpcError."""
    token = ""
    while True:
        request = adapters_pb2.ListAdaptersRequest(page_size=1000, page_token=token)
        page = await client.adapters.ListAdapters(request, timeout=client.connection.deadline)
        for adapter in page.adapters:
            yield adapter
        token = page.next_page_token
        if not token:
            return
