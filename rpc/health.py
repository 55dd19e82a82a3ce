"""Health checks as grpc.health.v1 has them: asked once, or watched."""

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from rpc.errors import not_found, unavailable

_Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """What a server says of itself ("") and of each of its services. Belongs to the event loop.

    Who watches is told of the end, and let go: a stop waits for all calls, and these would go on for ever.
    """

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._has_ended = False
        self._changed = asyncio.Event()

    def set(self, service: str, serving: bool) -> None:
        """Counts until the next time, and not any more after the end."""
        self._serving[service] = serving and not self._has_ended
        self._wake()

    def end(self) -> None:
        """NOT_SERVING, all of them, and for good."""
        self._has_ended = True
        self._serving = dict.fromkeys(self._serving, False)
        self._wake()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._serving:
            raise not_found("UNKNOWN_SERVICE", f"there is no service {request.service} here: ask reflection")
        return _Response(status=self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        told = None
        while True:
            has_ended, changed = self._has_ended, self._changed
            status = self._status(request.service)
            if status != told:
                await context.write(_Response(status=status))
                told = status
            if has_ended:
                raise unavailable(
                    "SHUTTING_DOWN", "the service is shutting down: watch again when it is back"
                )
            await changed.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        serving = self._serving.get(service)
        if serving is None:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if serving else _Response.NOT_SERVING

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
