"""ExecutorService: decode, call, encode."""

from collections.abc import AsyncIterator, Callable

import grpc

from executor.service.sessions import Sessions
from lorikeet.v1 import executor_pb2 as pb
from lorikeet.v1 import executor_pb2_grpc
from rpc.errors import failed_precondition, invalid_argument


class ExecutorServicer(executor_pb2_grpc.ExecutorServiceServicer):
    """Serves one engine to any number of frontends."""

    def __init__(
        self, *, hello: pb.EngineHello, sessions: Sessions, statistics: Callable[[int], pb.ExecutorStatistics]
    ) -> None:
        self._hello = hello
        self._sessions = sessions
        self._statistics = statistics

    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: grpc.aio.ServicerContext
    ) -> None:
        first = await self._sessions.first_messages.read(request_iterator)
        if first is None:
            return
        check_hello(first, self._hello)
        with self._sessions.open() as session:
            await context.write(pb.ConnectResponse(hello=self._hello))
            await session.serve(request_iterator, context.write)

    async def GetStatistics(  # noqa: N802
        self, request: pb.GetExecutorStatisticsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ExecutorStatistics:
        return self._statistics(request.adapters)


def check_hello(message: pb.ConnectRequest, ours: pb.EngineHello) -> None:
    """Raises LorikeetError unless the message is the Hello of a frontend that fits this executor."""
    if message.WhichOneof("message") != "hello":
        raise invalid_argument("NO_HELLO", "the first message of a stream must be a Hello")
    theirs = message.hello
    if theirs.protocol_version != ours.protocol_version:
        raise failed_precondition(
            "PROTOCOL_VERSION",
            f"the frontend speaks version {theirs.protocol_version} of the protocol, this executor "
            f"{ours.protocol_version}: run the same release of both",
        )
    if theirs.tokenizer_digest != ours.tokenizer_digest:
        raise failed_precondition(
            "TOKENIZER_MISMATCH",
            "the frontend's tokenizer.json is not the executor's: give both the same model folder",
            theirs=theirs.tokenizer_digest,
            ours=ours.tokenizer_digest,
        )
