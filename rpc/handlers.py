"""Handlers of methods, wrapped once and not for each call."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

_MOST_METHODS = 256


class WrappingInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each method's handler once, as long as the server has the same handler for it.

    Args:
        wrap: takes the method's full name and its handler.
    """

    def __init__(self, wrap: Callable[[str, Any], grpc.RpcMethodHandler]) -> None:
        self._wrap = wrap
        # Each handler as it was found, and wrapped.
        self._known: dict[str, tuple[Any, grpc.RpcMethodHandler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue]
        known = self._known.get(method)
        if known is None or known[0] is not handler:
            if len(self._known) >= _MOST_METHODS:
                self._known.clear()  # other interceptors may refuse whatever a client makes up
            known = self._known[method] = handler, self._wrap(method, handler)
        return known[1]
