"""Who may call: tokens by their hashes, with roles and tenants. Pure."""

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import yaml

from rpc.strict_yaml import RepeatedKeyError, load_yaml

_PREFIX = "lrk_"
_MAX_TOKENS = 10_000
_MAX_TOKEN_CHARACTERS = 512
_HASH = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"name", "role", "token_sha256", "tenant"}
MAX_TENANT_CHARACTERS = 128


class Role(StrEnum):
    """What a caller may do: generate, or change adapters too."""

    GENERATE = "generate"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls. The defaults are everyone where nothing asks for tokens.

    Args:
        name: for logs.
        tenant: the only one on whose behalf it may call; empty binds it to none.
        is_known: it has shown a token.
    """

    name: str = ""
    role: Role = Role.ADMIN
    tenant: str = ""
    is_known: bool = False


class TokenTable:
    """Tokens that are accepted.

    Args:
        callers: SHA-256 of a token (hex) and who shows it.
    """

    def __init__(self, callers: Iterable[tuple[str, Caller]]) -> None:
        self._callers = {bytes.fromhex(digest): caller for digest, caller in callers}

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, token: str) -> Caller | None:
        """Whose token it is. The time it takes says nothing of a token: it is looked for by its hash."""
        digest = hashlib.sha256(token[:_MAX_TOKEN_CHARACTERS].encode("utf-8", "surrogatepass")).digest()
        return self._callers.get(digest)


def parse_tokens(text: str) -> TokenTable:
    """Reads a list of {name, role, token_sha256, tenant} in YAML or JSON.

    Raises ValueError, saying which entry is wrong; never repeats a value, which may be a token.
    """
    try:
        entries = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        what = "a key is said twice" if isinstance(error, RepeatedKeyError) else "it is neither YAML nor JSON"
        raise ValueError(f"{what}{where}") from None
    if not isinstance(entries, list) or len(entries) > _MAX_TOKENS:
        raise ValueError(f"it must be a list of at most {_MAX_TOKENS} tokens")
    callers = [_caller(number, entry) for number, entry in enumerate(entries, start=1)]
    if len({digest for digest, _ in callers}) != len(callers):
        raise ValueError("one token_sha256 stands there twice")
    return TokenTable(callers)


def new_token() -> tuple[str, str]:
    """A random token of 256 bits and the hash that a file of tokens has of it."""
    token = _PREFIX + secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).hexdigest()


def _caller(number: int, entry: Any) -> tuple[str, Caller]:
    if not isinstance(entry, dict) or not entry.keys() <= _FIELDS:
        raise ValueError(f"entry {number} must have name, role, token_sha256 and at most tenant besides")
    name, role, digest = entry.get("name"), entry.get("role"), entry.get("token_sha256")
    tenant = entry.get("tenant") or ""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"entry {number} has no name")
    if role not in tuple(Role):
        raise ValueError(f"entry {number} ({name}): role must be one of {', '.join(Role)}")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise ValueError(
            f"entry {number} ({name}): token_sha256 must be 64 lower-case hex digits, as "
            "`lorikeet auth token` prints them"
        )
    if not isinstance(tenant, str) or len(tenant) > MAX_TENANT_CHARACTERS or not tenant.isprintable():
        raise ValueError(f"entry {number} ({name}): tenant must be a text of printable characters")
    return digest, Caller(name=name, role=Role(role), tenant=tenant, is_known=True)
