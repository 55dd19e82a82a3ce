"""Tokens: what the file may say, and who is found by them."""

import json

import pytest

from rpc.tokens import Role, new_token, parse_tokens

TOKEN, HASH = new_token()
ENTRY = {"name": "ci", "role": "admin", "token_sha256": HASH}


def test_a_new_token_is_found_by_its_hash() -> None:
    table = parse_tokens(json.dumps([ENTRY, {**ENTRY, "token_sha256": new_token()[1], "name": "other"}]))
    caller = table.find(TOKEN)
    assert caller is not None
    assert (caller.name, caller.role, caller.tenant, caller.is_known) == ("ci", Role.ADMIN, "", True)
    assert table.find(HASH) is None
    assert table.find("") is None
    assert table.find(TOKEN[:-1]) is None
    assert table.find("x" * 1_000_000) is None


def test_yaml_with_tenants() -> None:
    text = f"- name: web\n  role: generate\n  tenant: acme\n  token_sha256: {HASH}\n"
    caller = parse_tokens(text).find(TOKEN)
    assert caller is not None
    assert (caller.role, caller.tenant) == (Role.GENERATE, "acme")


def test_tokens_are_never_the_same() -> None:
    assert len({new_token() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "- name: [unclosed",
        json.dumps([{**ENTRY, "role": "root"}]),
        pytest.param(json.dumps([{**ENTRY, "token": TOKEN}]), id="token too"),
        pytest.param(json.dumps([{**ENTRY, "token_sha256": TOKEN}]), id="token"),
        pytest.param(json.dumps([{**ENTRY, "token_sha256": HASH.upper()}]), id="upper"),
        json.dumps([{**ENTRY, "name": ""}]),
        json.dumps([{**ENTRY, "tenant": 5}]),
        json.dumps([{**ENTRY, "tenant": "x" * 129}]),
        json.dumps([ENTRY, ENTRY]),
        pytest.param(f"- {{name: ci, role: admin, token_sha256: {HASH}, tenant: a, tenant: ''}}", id="twice"),
    ],
)
def test_a_broken_file_is_refused_without_repeating_tokens(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_tokens(text)
    assert TOKEN not in str(error.value)
