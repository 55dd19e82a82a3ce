"""URLs of adapters, read strictly, and the prefixes that the configuration allows.

A URL means one thing only: no user, fragment, percent-encoding, empty part, `.` or `..`. So prefixes can be
compared part by part, and `s3://adapters` never lets `s3://adapters-evil` in.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rpc.errors import LorikeetError, invalid_argument, permission_denied

OBJECT_SCHEMES = ("s3", "gs", "az")
_SCHEMES = (*OBJECT_SCHEMES, "https", "http", "hf")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::[0-9]{1,5})?")
_PART = re.compile(r"[A-Za-z0-9._=+,@~-]{1,255}")
_LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True, kw_only=True)
class SourceUrl:
    """Parts of an adapter's URL.

    Args:
        scheme: lower case, one of those supported.
        place: bucket, container, `host[:port]` or the owner on the hub.
        parts: of the path; on the hub the repository and then the folder in it.
        revision: on the hub; "" for the default one.
        query: as it was given, for https only; it may be a secret.
    """

    scheme: str
    place: str
    parts: tuple[str, ...]
    revision: str = ""
    query: str = ""

    @property
    def public(self) -> str:
        """The URL without what may be secret."""
        parts = list(self.parts)
        if self.revision:
            parts[0] += f"@{self.revision}"
        return "/".join((f"{self.scheme}://{self.place}", *parts))

    def is_below(self, prefix: "SourceUrl") -> bool:
        """Whether a prefix covers this URL; whole parts count."""
        return (
            (self.scheme, self.place) == (prefix.scheme, prefix.place)
            and self.parts[: len(prefix.parts)] == prefix.parts
            and prefix.revision in ("", self.revision)
        )

    def child(self, name: str) -> "SourceUrl":
        """The URL of something in this folder; `name` may have several parts."""
        return replace(self, parts=(*self.parts, *name.split("/")))


def is_url(source: str) -> bool:
    """Whether a source is meant as a URL and not as a path."""
    return "://" in source


def parse_url(text: str) -> SourceUrl:
    """Takes a URL apart. Raises LorikeetError: INVALID_ARGUMENT; its message repeats nothing secret."""
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme not in _SCHEMES:
        raise invalid_argument(
            "UNSUPPORTED_SOURCE",
            "only folders below a root and s3://, gs://, az://, https:// and hf:// are sources of adapters",
        )
    rest, _, query = rest.partition("?")
    if query and scheme not in ("https", "http"):
        raise _bad(scheme, "takes no query")
    if query and not re.fullmatch(r"[!-~]+", query):
        raise _bad(scheme, "has a query that is not plain ASCII")
    place, *parts = rest.removesuffix("/").split("/")
    if scheme in ("https", "http"):
        place = place.lower()
        if not _HOST.fullmatch(place):
            raise _bad(scheme, "must name a plain host, with no user or password")
    elif not _BUCKET.fullmatch(place):
        raise _bad(scheme, "must begin with a bucket, container or owner")
    revision = ""
    if scheme == "hf" and parts:
        parts[0], _, revision = parts[0].partition("@")
        if revision and not _is_plain(revision):
            raise _bad(scheme, "has a revision with characters that are not allowed")
    if not all(map(_is_plain, parts)):
        raise _bad(
            scheme,
            "may have letters, digits and . _ = + , @ ~ - in its path, with no empty part, no . or .. and no "
            "percent-encoding",
        )
    return SourceUrl(scheme=scheme, place=place, parts=tuple(parts), revision=revision, query=query)


def parse_prefix(text: str) -> SourceUrl:
    """Reads a configured prefix. Raises ValueError, saying what is wrong."""
    try:
        prefix = parse_url(text)
    except LorikeetError as error:
        raise ValueError(error.message) from None
    if prefix.query:
        raise ValueError("a prefix of sources has no query")
    if prefix.scheme == "http" and prefix.place.partition(":")[0] not in _LOOPBACK:
        raise ValueError("http:// is for tests on 127.0.0.1 only: use https://")
    return prefix


def check_allowed(url: SourceUrl, prefixes: Sequence[SourceUrl]) -> None:
    """Raises LorikeetError: PERMISSION_DENIED, for what no prefix covers."""
    if not any(map(url.is_below, prefixes)):
        listed = ", ".join(prefix.public for prefix in prefixes) or "none"
        raise permission_denied(
            "SOURCE_NOT_ALLOWED",
            f"{url.public} is not below a source that the store allows ({listed}): start the store with "
            f"--sources {url.scheme}://{url.place}/ or a longer prefix",
        )


def _is_plain(part: str) -> bool:
    return part not in (".", "..") and _PART.fullmatch(part) is not None


def _bad(scheme: str, problem: str) -> LorikeetError:
    return invalid_argument("BAD_SOURCE", f"a source with {scheme}:// {problem}")
