"""Who may call what: decided from a call's token and where it comes from."""

import contextvars
import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc

from rpc.auth_file import AuthFile
from rpc.errors import LorikeetError, permission_denied, unauthenticated
from rpc.handlers import WrappingInterceptor
from rpc.tokens import MAX_TENANT_CHARACTERS, Caller, Role, TokenTable

_HEALTH = "grpc.health.v1.Health"
_ANYONE = Caller()
_decide: contextvars.ContextVar[Callable[[], Caller]] = contextvars.ContextVar(
    "decide", default=lambda: _ANYONE
)
_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller", default=_ANYONE)


@dataclass(frozen=True, kw_only=True)
class AccessRules:
    """What one port lets pass.

    Args:
        admin_services: full names of the services that need the admin role.
        is_admin_open: where no tokens are asked for, these answer everyone who reaches the port; else only
            callers on this machine.
    """

    admin_services: Collection[str] = ()
    is_admin_open: bool = False

    def decide(self, *, service: str, token: str | None, peer: str, tokens: TokenTable | None) -> Caller:
        """Who calls.

        Args:
            service: full name of the service that is called.
            token: what the call shows; None for nothing.
            peer: where it comes from, as gRPC says it.
            tokens: those that are accepted; None asks for none.

        Raises:
            LorikeetError: UNAUTHENTICATED or PERMISSION_DENIED, saying what is missing.
        """
        if service == _HEALTH:
            return _ANYONE
        needs_admin = service in self.admin_services
        if tokens is None:
            if needs_admin and not self.is_admin_open and not is_local(peer):
                raise _admin_closed()
            return _ANYONE
        caller = tokens.find(token) if token is not None else None
        if caller is None:
            raise _unknown(token)
        if needs_admin and caller.role is not Role.ADMIN:
            raise permission_denied(
                "ADMIN_ROLE_NEEDED",
                f"the token of {caller.name} may generate, not see or change adapters: use one with the role "
                "admin",
            )
        return caller


class AccessInterceptor(WrappingInterceptor):
    """Lets pass what the rules allow; `current_caller` then says who calls.

    Args:
        auth: where tokens are; None asks for none.
    """

    def __init__(self, rules: AccessRules, auth: AuthFile | None) -> None:
        super().__init__(self._guard)
        self._rules = rules
        self._auth = auth

    def _guard(self, method: str, handler: Any) -> grpc.RpcMethodHandler:
        service = method.split("/")[1]
        requests = "stream" if handler.request_streaming else "unary"
        responses = "stream" if handler.response_streaming else "unary"
        inner = getattr(handler, f"{requests}_{responses}")

        def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            # Inside the call, so that a refusal is an error like any other (see ErrorInterceptor).
            token, peer = bearer_token(context.invocation_metadata() or ()), context.peer()

            def decide() -> Caller:
                tokens = self._auth.tokens if self._auth is not None else None
                return self._rules.decide(service=service, token=token, peer=peer, tokens=tokens)

            _decide.set(decide)
            decide_again()
            return inner(request, context)

        factory = getattr(grpc, f"{requests}_{responses}_rpc_method_handler")
        return factory(call, handler.request_deserializer, handler.response_serializer)


def decide_again() -> None:
    """Decides about the call that this task answers by the tokens of now; for streams that go on for long.

    Raises LorikeetError: UNAUTHENTICATED or PERMISSION_DENIED.
    """
    _caller.set(_decide.get()())


def current_caller() -> Caller:
    """Who makes the call that this task answers."""
    return _caller.get()


def check_tenant(requested: str, caller: Caller) -> str:
    """The tenant that a call is for.

    Raises LorikeetError: PERMISSION_DENIED for another than the caller's own, INVALID_ARGUMENT.
    """
    if len(requested) > MAX_TENANT_CHARACTERS or not requested.isprintable():
        raise LorikeetError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "BAD_TENANT",
            f"tenant is not a text of at most {MAX_TENANT_CHARACTERS} printable characters",
        )
    may_choose = not caller.is_known or (caller.role is Role.ADMIN and not caller.tenant)
    if may_choose or requested == caller.tenant:
        return requested
    if not requested:
        return caller.tenant
    raise permission_denied(
        "OTHER_TENANT",
        f"the token of {caller.name} is not for that tenant: leave the field empty, or use its own token",
    )


def may_use(tenant: str, caller: Caller) -> bool:
    """Whether a caller may use what belongs to a tenant; what belongs to none is everyone's."""
    return not caller.tenant or tenant in ("", caller.tenant)


def may_change(tenant: str, caller: Caller) -> bool:
    """Whether a caller may change what belongs to a tenant; what belongs to none is the unbound admins'."""
    return not caller.tenant or tenant == caller.tenant


def bearer_token(metadata: Any) -> str | None:
    """The token of an `authorization: Bearer ...` entry; None without one."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                return token.strip()
    return None


def is_local(peer: str) -> bool:
    """True for a peer, as gRPC names it, on a unix socket or a loopback address."""
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return True
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _unknown(token: str | None) -> LorikeetError:
    if token is None:
        return unauthenticated(
            "NO_TOKEN",
            "this server asks for a token: send it as `authorization: Bearer TOKEN` (lorikeet --token, or "
            "LORIKEET_TOKEN)",
        )
    return unauthenticated(
        "UNKNOWN_TOKEN", "this token is not known here, or not any more: ask for a new one"
    )


def _admin_closed() -> LorikeetError:
    return permission_denied(
        "ADMIN_CLOSED",
        "adapters are seen and changed from this machine only: call from there, or start the frontend with "
        "auth_file (tokens with roles) or admin_listen (an address for this service)",
    )
