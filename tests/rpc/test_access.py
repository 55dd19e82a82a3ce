"""Who may call what."""

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from rpc.access import (
    AccessInterceptor,
    AccessRules,
    bearer_token,
    check_tenant,
    is_local,
    may_change,
    may_use,
)
from rpc.errors import LorikeetError
from rpc.tokens import Caller, Role, TokenTable, new_token

ADMIN_SERVICE, PUBLIC_SERVICE = "lorikeet.v1.AdapterService", "lorikeet.v1.GenerationService"
HERE, ELSEWHERE = "ipv4:127.0.0.1:4000", "ipv4:10.0.0.9:4000"
ADMIN, ADMIN_HASH = new_token()
USER, USER_HASH = new_token()
TOKENS = TokenTable(
    [
        (ADMIN_HASH, Caller(name="boss", role=Role.ADMIN, is_known=True)),
        (USER_HASH, Caller(name="web", role=Role.GENERATE, tenant="acme", is_known=True)),
    ]
)


def decide(service: str, token: str | None = None, peer: str = ELSEWHERE, **changes: Any) -> Caller:
    tokens = changes.pop("tokens", TOKENS)
    rules = AccessRules(admin_services=(ADMIN_SERVICE,), **changes)
    return rules.decide(service=service, token=token, peer=peer, tokens=tokens)


def refused(code: str, reason: str):
    return pytest.raises(LorikeetError, match=rf"^{code} \({reason}\)")


def test_without_tokens_adapters_are_changed_from_this_machine_only() -> None:
    assert decide(PUBLIC_SERVICE, tokens=None) == Caller()
    assert decide(ADMIN_SERVICE, tokens=None, peer=HERE) == Caller()
    assert decide(ADMIN_SERVICE, tokens=None, peer="unix:") == Caller()
    assert decide(ADMIN_SERVICE, tokens=None, is_admin_open=True) == Caller()
    with refused("PERMISSION_DENIED", "ADMIN_CLOSED"):
        decide(ADMIN_SERVICE, tokens=None)


@pytest.mark.parametrize("peer", [HERE, ELSEWHERE, "unix:"])
@pytest.mark.parametrize("is_admin_open", [False, True])
def test_with_tokens_each_call_shows_one(peer: str, is_admin_open: bool) -> None:
    def call(service: str, token: str | None) -> str:
        return decide(service, token, peer, is_admin_open=is_admin_open).name

    assert call(ADMIN_SERVICE, ADMIN) == "boss"
    assert call(PUBLIC_SERVICE, ADMIN) == "boss"
    assert call(PUBLIC_SERVICE, USER) == "web"
    with refused("PERMISSION_DENIED", "ADMIN_ROLE_NEEDED"):
        call(ADMIN_SERVICE, USER)
    for service in (ADMIN_SERVICE, PUBLIC_SERVICE, "grpc.reflection.v1alpha.ServerReflection"):
        with refused("UNAUTHENTICATED", "NO_TOKEN"):
            call(service, None)
        with refused("UNAUTHENTICATED", "UNKNOWN_TOKEN"):
            call(service, "guess")


def test_health_is_open() -> None:
    assert decide("grpc.health.v1.Health") == Caller()


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("unix:", True),
        ("unix:/run/x.sock", True),
        ("ipv4:127.8.8.8:1", True),
        ("ipv6:%5B::1%5D:5", True),
        ("ipv6:[::1]:5", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5", True),
        ("ipv6:%5B::ffff:10.0.0.1%5D:5", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:5", False),
        ("ipv4:0.0.0.0:1", False),
        ("ipv4:172.17.0.1:40000", False),
        ("ipv4:localhost:1", False),
        ("", False),
        ("unknown", False),
    ],
)
def test_who_is_on_this_machine(peer: str, local: bool) -> None:
    assert is_local(peer) is local


@pytest.mark.parametrize(
    ("metadata", "token"),
    [
        ((), None),
        ((("authorization", "Bearer abc"),), "abc"),
        ((("authorization", "bearer  abc "),), "abc"),
        ((("authorization", "Basic abc"),), None),
        ((("authorization", "Bearer"),), ""),
        ((("x-authorization", "Bearer abc"),), None),
    ],
)
def test_the_token_is_read_from_metadata(metadata: Any, token: str | None) -> None:
    assert bearer_token(metadata) == token


def known(role: Role, tenant: str) -> Caller:
    return Caller(name="n", role=role, tenant=tenant, is_known=True)


@pytest.mark.parametrize(
    ("caller", "requested", "tenant"),
    [
        (Caller(), "", ""),
        (Caller(), "acme", "acme"),
        (known(Role.ADMIN, ""), "acme", "acme"),
        (known(Role.ADMIN, "acme"), "", "acme"),
        (known(Role.GENERATE, "acme"), "acme", "acme"),
        (known(Role.GENERATE, ""), "", ""),
        (known(Role.GENERATE, "acme"), "other", None),
        (known(Role.ADMIN, "acme"), "other", None),
        (known(Role.GENERATE, ""), "acme", None),
    ],
)
def test_a_tenant_is_the_callers_own(caller: Caller, requested: str, tenant: str | None) -> None:
    if tenant is not None:
        assert check_tenant(requested, caller) == tenant
        return
    with refused("PERMISSION_DENIED", "OTHER_TENANT"):
        check_tenant(requested, caller)


@pytest.mark.parametrize("tenant", ["x" * 129, "line\nbreak"])
def test_an_absurd_tenant_is_refused(tenant: str) -> None:
    with pytest.raises(LorikeetError) as error:
        check_tenant(tenant, Caller())
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_what_belongs_to_whom() -> None:
    bound, unbound = known(Role.ADMIN, "acme"), known(Role.ADMIN, "")
    assert [may_use(tenant, bound) for tenant in ("", "acme", "other")] == [True, True, False]
    assert [may_change(tenant, bound) for tenant in ("", "acme", "other")] == [False, True, False]
    assert all(check(tenant, unbound) for check in (may_use, may_change) for tenant in ("", "acme"))


async def test_a_method_is_wrapped_once() -> None:
    interceptor = AccessInterceptor(AccessRules(), auth=None)
    details: Any = SimpleNamespace(method=f"/{PUBLIC_SERVICE}/GetModel")
    inner = grpc.unary_unary_rpc_method_handler(lambda request, context: request)

    async def handler(details: grpc.HandlerCallDetails) -> Any:
        return inner

    first = await interceptor.intercept_service(handler, details)
    assert first is not inner
    assert await interceptor.intercept_service(handler, details) is first
