"""Handlers of methods, wrapped once and not for each call."""

from collections.abc import Callable
from typing import Any

import grpc

_MOST_METHODS = 256


class WrappedHandlers:
    """By method, as long as the server has the same handler for it.

    Args:
        wrap: takes the method's full name and its handler.
    """

    def __init__(self, wrap: Callable[[str, Any], grpc.RpcMethodHandler]) -> None:
        self._wrap = wrap
        # Each handler as it was found, and wrapped.
        self._known: dict[str, tuple[Any, grpc.RpcMethodHandler]] = {}

    def get(self, method: str, handler: Any) -> grpc.RpcMethodHandler:
        known = self._known.get(method)
        if known is None or known[0] is not handler:
            if len(self._known) >= _MOST_METHODS:
                self._known.clear()  # other interceptors may refuse whatever a client makes up
            known = self._known[method] = handler, self._wrap(method, handler)
        return known[1]
