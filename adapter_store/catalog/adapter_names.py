"""What an adapter may be called, and what is answered where it is not there."""

import re

from adapter_store.formats.strict_json import printable
from rpc.errors import LorikeetError, invalid_argument, not_found

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
# A name may stand in a path or a URL, where these mean something else.
_BAD_SEGMENTS = frozenset(("", ".", ".."))


def check_name(name: str) -> None:
    """Raises LorikeetError, INVALID_ARGUMENT, for what cannot be an adapter's name."""
    if not _NAME.fullmatch(name) or _BAD_SEGMENTS.intersection(name.split("/")):
        raise invalid_argument(
            "BAD_NAME",
            f"{printable(name, 150)!r} is not a name: use up to 128 letters, digits, '.', '_', '-' and '/', "
            "starting with a letter or digit, and nothing empty, '.' or '..' between slashes",
        )


def unknown_name(name: str) -> LorikeetError:
    """The error for a name that nothing is loaded under."""
    return not_found(
        "ADAPTER_NOT_FOUND",
        f"no adapter is loaded as {printable(name, 150)!r}: load it, or list what there is",
        adapter=printable(name),
    )


def unknown_digest(digest: str) -> LorikeetError:
    """The error for a digest that no name points to."""
    return not_found("UNKNOWN_DIGEST", f"no adapter with digest {printable(digest, 80)!r} is loaded")
