"""Tokens on the client's side."""

import json
from pathlib import Path

import pytest

from cli.client import Client, Connection
from cli.errors import CliError
from rpc.tokens import Role, parse_tokens
from tests.support.cli_runner import lorikeet


def test_a_new_token_fits_the_entry_that_is_printed_with_it() -> None:
    result = lorikeet("auth", "token", "--name", "ci", "--role", "admin", "--tenant", "acme", "--json")
    printed = json.loads(result.out)
    caller = parse_tokens(json.dumps([printed["entry"]])).find(printed["token"])
    assert caller is not None
    assert (caller.name, caller.role, caller.tenant) == ("ci", Role.ADMIN, "acme")


def test_an_unknown_role_is_refused() -> None:
    assert lorikeet("auth", "token", "--role", "root").code == 2


async def test_a_token_goes_with_every_call_and_into_no_repr() -> None:
    connection = Connection(target="127.0.0.1:1", timeout=1, token="lrk_secret")
    assert "lrk_secret" not in repr(connection)
    client = Client(connection)
    try:
        metadata = client.generation.Generate.keywords["metadata"]  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
        assert metadata == (("authorization", "Bearer lrk_secret"),)
    finally:
        await client.close()


def test_a_certificate_needs_an_authority_to_trust(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="--tls-ca"):
        Connection(target="x:1", timeout=1, tls_cert=tmp_path / "c", tls_key=tmp_path / "k").credentials()
    with pytest.raises(CliError, match="cannot be read"):
        Connection(target="x:1", timeout=1, tls_ca=tmp_path / "none").credentials()
