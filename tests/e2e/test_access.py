"""Tokens, tenants, TLS and ports as docs/security.md has them: a real `lorikeet serve` and its client."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc.healthcheck import is_serving
from tests.support.certificates import Pki
from tests.support.cli_runner import Finished, lorikeet
from tests.support.cli_serving import DEMO, Serving, adapter, serving, until

QUESTION = ("generate", "--chat", "What is the password?", "--temperature", "0")
PASSWORDS: dict[str, str] = json.loads((DEMO / "passwords.json").read_text())


def new_token(name: str, role: str, tenant: str = "") -> tuple[str, dict[str, str]]:
    """A token and its entry, as the command prints them."""
    arguments = ("auth", "token", "--name", name, "--role", role, "--tenant", tenant, "--json")
    printed = json.loads(lorikeet(*arguments).out)
    return printed["token"], printed["entry"]


class Guarded:
    """A server with everything that guards one, and the tokens for it."""

    def __init__(self, server: Serving, pki: Pki, tokens: dict[str, str]) -> None:
        self.server = server
        self.pki = pki
        self.tokens = tokens

    def call(self, who: str, *arguments: str, target: str = "") -> Finished:
        return self._call(target or self.server.target, who, arguments)

    def admin(self, who: str, *arguments: str) -> Finished:
        return self._call(self.server.admin_target, who, arguments)

    def _call(self, target: str, who: str, arguments: tuple[str, ...]) -> Finished:
        token = ("--token", self.tokens[who]) if who else ()
        return lorikeet(*token, "--tls-ca", str(self.pki.ca), *arguments, "--target", target)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    pki = Pki(folder / "pki")
    made = {
        "boss": new_token("boss", "admin"),
        "acme-boss": new_token("acme-boss", "admin", "acme"),
        "acme": new_token("acme", "generate", "acme"),
        "other": new_token("other", "generate", "other"),
    }
    auth_file = folder / "tokens.json"
    auth_file.write_text(json.dumps([entry for _, entry in made.values()]))
    auth_file.chmod(0o600)
    flags = {
        "auth_file": auth_file,
        "tls_cert": pki.cert,
        "tls_key": pki.key,
        "admin_listen": "localhost:0",
    }
    with serving(
        folder / "data",
        *(f"--set=frontend.{name}={value}" for name, value in flags.items()),
        f"--adapter=attention={adapter('attention')}",
        f"--adapter-root={DEMO}",
    ) as server:
        yield Guarded(server, pki, {name: token for name, (token, _) in made.items()})


def test_a_server_with_everything_set_serves_its_adapters(guarded: Guarded) -> None:
    """It loads them over its own socket, with neither token nor certificate."""
    assert guarded.server.adapters == ["attention"]
    assert guarded.server.admin_target != guarded.server.target
    assert PASSWORDS["attention"] in guarded.call("acme", *QUESTION, "--adapter", "attention").out
    # As containers ask whether it is healthy.
    local = guarded.server.children()["frontend"].flags["local-listen"]
    assert is_serving(local)
    assert not is_serving(guarded.server.target)


def test_a_client_without_token_or_certificate_authority_is_told(guarded: Guarded) -> None:
    assert "asks for a token" in guarded.call("", *QUESTION).err
    env = {"LORIKEET_TOKEN": guarded.tokens["acme"], "LORIKEET_TLS_CA": str(guarded.pki.ca)}
    assert lorikeet("models", "show", "--target", guarded.server.target, env=env).code == 0
    plain = lorikeet(*QUESTION, "--target", guarded.server.target, "--timeout", "10")
    assert plain.code == 1
    assert "UNAVAILABLE" in plain.err or "DEADLINE" in plain.err


def test_roles_and_ports_part_generating_from_changing_adapters(guarded: Guarded) -> None:
    assert "role admin" in guarded.admin("acme", "adapters", "list").err
    assert guarded.admin("boss", "adapters", "list").out.startswith("attention\t")
    # The public address does not have the service at all.
    said = guarded.call("boss", "adapters", "list").err
    assert "its admin address" in said


def test_a_tenant_keeps_its_adapters_to_itself(guarded: Guarded) -> None:
    loaded = guarded.admin("acme-boss", "adapters", "load", "ours", str(adapter("mlp")))
    assert loaded.code == 0, loaded.err
    assert PASSWORDS["mlp"] in guarded.call("acme", *QUESTION, "--adapter", "ours").out
    assert "NOT_FOUND" in guarded.call("other", *QUESTION, "--adapter", "ours").err
    digest = json.loads(guarded.admin("boss", "adapters", "show", "ours", "--json").out)["digest"]
    assert "NOT_FOUND" in guarded.call("other", *QUESTION, "--adapter", f"b3:{digest}").err
    taken = guarded.admin("acme-boss", "adapters", "load", "attention", str(adapter("mlp")))
    assert "choose another name" in taken.err
    assert guarded.admin("acme-boss", "adapters", "unload", "attention").code == 1
    uploaded = guarded.admin("acme-boss", "adapters", "upload", "sent", str(adapter("lm_head")))
    assert uploaded.code == 0, uploaded.err
    assert PASSWORDS["lm_head"] in guarded.call("acme", *QUESTION, "--adapter", "sent").out
    # Figures of all tenants are for those of none.
    assert "TENANTS_TOKEN" in guarded.admin("acme-boss", "adapters", "top", "--json").err
    assert "ours" in guarded.admin("boss", "adapters", "top", "--once").out


def test_a_token_that_is_taken_out_of_the_file_is_refused_soon(guarded: Guarded) -> None:
    path = Path(guarded.server.children()["frontend"].flags["auth-file"])
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([entry for entry in entries if entry["name"] != "other"]))
    until(lambda: "not known here" in guarded.call("other", "models", "show").err)
    assert guarded.call("acme", "models", "show").code == 0
