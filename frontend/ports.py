"""The addresses that a frontend answers on, and who may call what there."""

import asyncio
from typing import Any

from frontend.config import FrontendConfig
from frontend.service import ADAPTER_SERVICE, GENERATION_SERVICE, AdapterServicer, GenerationServicer
from lorikeet.v1 import adapters_pb2_grpc, generation_pb2_grpc
from rpc.access import AccessInterceptor, AccessRules
from rpc.auth_file import AuthFile
from rpc.server import Server

# Calls at once beside generation: tokenising, admin, watching, health.
_OTHER_CALLS = 256


class Ports:
    """One server for everyone; one for AdapterService alone, and one for this machine's user, where set.

    Args:
        auth: the tokens that calls must show; None asks for none.
    """

    def __init__(self, config: FrontendConfig, *, auth: AuthFile | None) -> None:
        self._config = config
        self._auth = auth
        self._is_admin_apart = config.admin_listen not in ("", config.listen)
        # Without an admin address of its own, this machine's callers may change adapters; with the same
        # address twice, whoever reaches it: somebody has thought of that.
        self._public = self._server(is_admin_open=config.admin_listen == config.listen)
        self._admin = self._server(is_admin_open=True) if self._is_admin_apart else None
        # The folder of its socket says who may call: no tokens, no TLS.
        self._local = Server(**self._options()) if config.local_listen else None
        self.admin_address = ""

    def add(self, generation: GenerationServicer, adapters: AdapterServicer) -> None:
        """Adds the services, each where it belongs."""
        register = adapters_pb2_grpc.add_AdapterServiceServicer_to_server
        for server in filter(None, (self._public, self._local)):
            server.add(
                GENERATION_SERVICE, generation_pb2_grpc.add_GenerationServiceServicer_to_server, generation
            )
        for server in filter(None, (self._admin or self._public, self._local)):
            server.add(ADAPTER_SERVICE, register, adapters)

    async def start(self) -> str:
        """Listens everywhere; the public address. Raises OSError; ValueError for unusable certificates."""
        tls = self._config.tls
        credentials = tls.credentials() if tls is not None else None
        if self._local is not None:
            await self._local.start(self._config.local_listen)
        if self._admin is not None:
            self.admin_address = await self._admin.start(self._config.admin_listen, credentials)
        address = await self._public.start(self._config.listen, credentials)
        self.admin_address = self.admin_address or address
        return address

    async def set_serving(self, serving: bool) -> None:
        for server in self._servers:
            await server.set_serving(serving)

    async def drain(self, grace_seconds: float) -> None:
        """See `Server.drain`; all at once."""
        await asyncio.gather(*(server.drain(grace_seconds) for server in self._servers))

    @property
    def _servers(self) -> list[Server]:
        return [server for server in (self._public, self._admin, self._local) if server is not None]

    def _server(self, *, is_admin_open: bool) -> Server:
        rules = AccessRules(admin_services=(ADAPTER_SERVICE,), is_admin_open=is_admin_open)
        return Server(interceptors=[AccessInterceptor(rules, self._auth)], **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "options": [("grpc.max_receive_message_length", self._config.max_message_bytes)],
            "maximum_concurrent_rpcs": self._config.max_requests + _OTHER_CALLS,
        }
