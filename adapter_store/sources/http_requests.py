"""GET over https with nothing hidden: each redirect is judged, each wait is bounded.

obstore and most clients follow redirects wherever they lead; a store of adapters must not be led to a
metadata service or out of what its configuration allows.
"""

import http.client
import ipaddress
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from adapter_store.sources.transfers import BrokenOffError
from rpc.errors import LorikeetError, invalid_argument

_SILENCE_SECONDS = 30
_CHUNK_BYTES = 1 << 20
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, kw_only=True)
class Hop:
    """Where a redirect may lead: the headers for it, and whether its address must be a public one."""

    headers: Mapping[str, str]
    must_be_public: bool


Judge = Callable[[str, str, Mapping[str, str]], Hop]
"""From the first URL, the next URL and the headers so far; raises LorikeetError for one that is refused."""


@contextmanager
def get(
    url: str, headers: Mapping[str, str], judge: Judge, *, seconds: float
) -> Iterator[tuple[http.client.HTTPResponse, Callable[[], Iterator[bytes]]]]:
    """One GET, its redirects followed as `judge` allows.

    Args:
        seconds: for the whole request with its body.

    Yields:
        the response, and what iterates over its body.

    Raises:
        BrokenOffError: the connection failed. LorikeetError: a redirect is refused.
    """
    deadline = time.monotonic() + seconds
    hop = Hop(headers=headers, must_be_public=False)
    target = url
    for _ in range(_MAX_REDIRECTS + 1):
        connection = _connect(target, hop)
        try:
            response = _request(connection, target, hop)
            if response.status not in _REDIRECTS:
                yield response, lambda response=response: _body(response, deadline)
                return
            target = _following(url, target, response.headers.get("Location", ""))
        finally:
            connection.close()
        hop = judge(url, target, hop.headers)
    raise invalid_argument("TOO_MANY_REDIRECTS", f"{_place(url)} redirects more than {_MAX_REDIRECTS} times")


def _following(first: str, url: str, location: str) -> str:
    """Where a redirect leads. Raises LorikeetError for what is no URL."""
    try:
        target = urljoin(url, location)
        _ = urlsplit(target).port  # raises what is no port's number
    except ValueError:
        raise redirect_refused(first, "") from None
    return target


def redirect_refused(first: str, following: str) -> LorikeetError:
    """The error for a redirect that leads where it must not."""
    where = _place(following) if following else "what is no URL"
    return invalid_argument(
        "REDIRECT_REFUSED",
        f"{_place(first)} redirects to {where}, which the store does not follow: give the final URL, below a "
        "source that the store allows",
    )


def _connect(url: str, hop: Hop) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            host, port, timeout=_SILENCE_SECONDS, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_SILENCE_SECONDS)
    try:
        connection.connect()
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        raise BrokenOffError(f"no connection to {_place(url)} ({_kind(error)})") from None
    if hop.must_be_public:
        # Of the connection itself, before anything is sent: a name that is looked up twice may lie.
        address = ipaddress.ip_address(connection.sock.getpeername()[0].partition("%")[0])
        if not address.is_global:
            connection.close()
            raise invalid_argument(
                "REDIRECT_REFUSED", f"a redirect to {_place(url)} leads to no public address"
            )
    return connection


def _request(connection: http.client.HTTPConnection, url: str, hop: Hop) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    try:
        connection.request("GET", path, headers={"Accept-Encoding": "identity", **hop.headers})
        return connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BrokenOffError(f"no answer from {_place(url)} ({_kind(error)})") from None


def _body(response: http.client.HTTPResponse, deadline: float) -> Iterator[bytes]:
    while True:
        if time.monotonic() > deadline:
            raise BrokenOffError("the server is too slow")
        try:
            chunk = response.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenOffError(f"the connection broke ({_kind(error)})") from None
        if not chunk:
            return
        yield chunk


def _place(url: str) -> str:
    """Scheme and host: the rest of a URL may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"


def _kind(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
