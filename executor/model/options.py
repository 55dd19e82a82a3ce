"""Reading options of a checkpoint's JSON files so that every mistake names its option."""

from collections.abc import Collection, Mapping
from typing import Any

_MISSING = object()


def integer(raw: Mapping[str, Any], name: str, *, default: int | object = _MISSING, least: int = 1) -> int:
    """A whole number of at least `least`; null counts as absent. Raises ValueError naming the option."""
    value = raw.get(name)
    if value is None:
        value = default
    if value is _MISSING:
        raise ValueError(f"the model's config lacks {name}")
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def number(
    raw: Mapping[str, Any], name: str, *, default: float | object = _MISSING, above: float | None = None
) -> float:
    """A number, greater than `above` where given; null counts as absent. Raises ValueError naming the
    option.
    """
    value = raw.get(name)
    if value is None:
        value = default
    if value is _MISSING:
        raise ValueError(f"the model's config lacks {name}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be greater than {above}, got {value!r}")
    return float(value)


def flag(raw: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """A boolean; null counts as absent. Raises ValueError naming the option."""
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def refuse_unknown(raw: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise ValueError for options that are set but not among `known`."""
    unknown = sorted(name for name, value in raw.items() if value is not None and name not in known)
    if unknown:
        raise ValueError(f"{where} does not support {', '.join(unknown)}; supported are {', '.join(known)}")
