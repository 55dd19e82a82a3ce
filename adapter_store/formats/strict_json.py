"""JSON from strangers: bounded, without duplicate keys or NaN, and text that is safe to repeat."""

import json
from typing import Any

# Python takes some 200 bytes for the smallest object; a few bytes of JSON must not become gigabytes.
_MAX_CONTAINERS = 400_000


def load_object(data: bytes) -> dict[str, Any]:
    """Parses one JSON object. Raises ValueError, saying what is wrong."""
    if data.count(b"{") + data.count(b"[") > _MAX_CONTAINERS:
        raise ValueError(f"more than {_MAX_CONTAINERS} objects and lists")
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def printable(text: str, limit: int = 200) -> str:
    """Text for a message: cut, with whatever cannot be shown or encoded escaped."""
    cut = text if len(text) <= limit else text[:limit] + "..."
    return cut if cut.isprintable() else cut.encode("unicode_escape", "backslashreplace").decode("ascii")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{printable(key)} stands there twice")
        result[key] = value
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
