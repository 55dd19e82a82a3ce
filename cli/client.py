"""A connection to a frontend, and its errors in words."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from cli.errors import CliError
from lorikeet.v1 import adapters_pb2_grpc, generation_pb2_grpc
from rpc.channel import open_channel
from rpc.errors import LorikeetError, from_rpc

T = TypeVar("T")

# What gRPC says of a connection that was there and went.
_LOST = ("Socket closed", "Connection reset", "Broken pipe", "GOAWAY")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the frontend is, and how long a call may take.

    Args:
        target: `host:port` or `unix:/path`.
        timeout: seconds for a whole call; 0 waits for ever.
    """

    target: str
    timeout: float

    @property
    def deadline(self) -> float | None:
        return self.timeout or None


class Client:
    """The public services over one channel. Opened inside a running event loop."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.channel = open_channel(connection.target)
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.adapters = adapters_pb2_grpc.AdapterServiceStub(self.channel)

    async def close(self) -> None:
        await self.channel.close()


def run(connection: Connection, body: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Runs `body` with a connected client. Raises CliError for every failure of a call."""

    async def main() -> T:
        client = Client(connection)
        try:
            return await body(client)
        finally:
            await client.close()

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
    match error.code:
        case grpc.StatusCode.UNAVAILABLE if any(word in error.message for word in _LOST):
            return f"{target} went away before the answer was complete: ask again ({error.message})"
        case grpc.StatusCode.UNAVAILABLE:
            return (
                f"nothing answers at {target}: start a server with `lorikeet serve`, or give its address "
                f"with --target ({error.message})"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no complete answer within {connection.timeout:g} s: allow more with --timeout"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"{target} does not offer this call: is it a Lorikeet frontend of this version?"
        case _:
            return error.message
