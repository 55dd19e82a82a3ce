"""Server reflection, for tools that have no protos."""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from rpc.errors import unavailable
from rpc.first_messages import FirstMessages

SERVICE = reflection.SERVICE_NAME
# A tool keeps its stream for as long as somebody looks at what it shows.
_IDLE_SECONDS = 3600.0


class Reflection(reflection_pb2_grpc.ServerReflectionServicer):
    """What grpc_reflection answers, on streams that hold up no stop.

    Args:
        names: full names of the services to tell about.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._answers: Any = reflection.aio.ReflectionServicer(names)
        self._questions = FirstMessages(_IDLE_SECONDS)

    def end(self) -> None:
        """Ends all streams between two questions."""
        self._questions.close(
            unavailable("SHUTTING_DOWN", "the service is shutting down: ask again when it is back")
        )

    async def ServerReflectionInfo(  # noqa: N802
        self, request_iterator: AsyncIterable[Any], context: Any
    ) -> AsyncIterator[Any]:
        async for answer in self._answers.ServerReflectionInfo(self._asked(request_iterator), context):
            yield answer

    async def _asked(self, requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
        messages = aiter(requests)
        while (request := await self._questions.read(messages)) is not None:
            yield request
