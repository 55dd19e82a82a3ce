"""Adapters in folders that a web server shows."""

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPResponse
from urllib.parse import urlsplit

from adapter_store.sources.http_requests import Hop, Judge, get, redirect_refused
from adapter_store.sources.transfers import BrokenOffError, Checksum, RemoteFile, changed, find_each
from adapter_store.sources.urls import SourceUrl, parse_url
from rpc.errors import LorikeetError, invalid_argument, permission_denied

# Each request; what is not through by then goes on by range.
_SECONDS = 120
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_SHA_256 = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")


class HttpFolder:
    """A `Remote` over https. The URL's query goes with the request for each file.

    Args:
        is_allowed: whether a redirect on the same host may lead to a URL.
    """

    def __init__(self, url: SourceUrl, is_allowed: Callable[[SourceUrl], bool]) -> None:
        self._url = url
        self._is_allowed = is_allowed

    def find(self, names: Sequence[str]) -> dict[str, RemoteFile]:
        """See `Remote.find`. By GET, as signed URLs are for GET only; the bodies are left unread."""
        return find_each(names, self._find_one)

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Remote.read`."""
        return read_range(self._address(file.name), {}, self._judge, file, start)

    def _find_one(self, name: str) -> RemoteFile | None:
        with get(self._address(name), {}, self._judge, seconds=_SECONDS) as (response, _):
            if response.status in (404, 410):
                return None
            check_status(response, name, self._url.public)
            size = response.headers.get("Content-Length", "")
            if not (size.isascii() and size.isdigit()) or "Content-Encoding" in response.headers:
                raise invalid_argument(
                    "NO_SIZE",
                    f"{self._url.public}: the server does not say how large {name} is as it lies there",
                )
            return RemoteFile(
                name=name, size=int(size), version=_version(response), checksum=_checksum(response)
            )

    def _address(self, name: str) -> str:
        return self._url.child(name).public + (f"?{self._url.query}" if self._url.query else "")

    def _judge(self, first: str, following: str, headers: Mapping[str, str]) -> Hop:
        try:
            target = parse_url(following)
        except LorikeetError:
            raise redirect_refused(first, following) from None
        same = (target.scheme, target.place) == (self._url.scheme, self._url.place)
        if not (same and self._is_allowed(target)):
            raise redirect_refused(first, following)
        return Hop(headers=headers, must_be_public=False)


def read_range(
    address: str, headers: Mapping[str, str], judge: Judge, file: RemoteFile, start: int
) -> Iterator[bytes]:
    """Bytes of a file from `start` on, of no other version than `file` says.

    Raises:
        BrokenOffError, LorikeetError: as `Remote.read`.
    """
    conditions = {"Range": f"bytes={start}-"} if start else {}
    if file.version.startswith('"'):
        conditions["If-Match"] = file.version
    with get(address, {**headers, **conditions}, judge, seconds=_SECONDS) as (response, body):
        if response.status in (404, 410, 412, 416):
            raise changed(file.name)
        check_status(response, file.name, f"{urlsplit(address).scheme}://{urlsplit(address).hostname}")
        if file.version and _version(response) != file.version:
            raise changed(file.name)
        skip = start
        if response.status == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or (int(found[1]), int(found[3])) != (start, file.size):
                raise changed(file.name)
            skip = 0
        for chunk in body():
            # A server without ranges sends all of it again.
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            yield chunk[skip:] if skip else chunk
            skip = 0


def check_status(response: HTTPResponse, name: str, source: str) -> None:
    """Raises BrokenOffError for what may pass, LorikeetError for what does not."""
    status = response.status
    if status in (200, 206):
        return
    if status in (401, 403):
        raise permission_denied(
            "SOURCE_DENIED", f"{source}: the server denies {name} ({status}): give the store access to it"
        )
    if status in (408, 425, 429) or status >= 500:
        raise BrokenOffError(f"{name} was answered with status {status}")
    raise invalid_argument("BAD_SOURCE", f"{source}: the server answers {name} with status {status}")


def _version(response: HTTPResponse) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _checksum(response: HTTPResponse) -> Checksum | None:
    """Of RFC 9530's Repr-Digest."""
    found = _SHA_256.search(response.headers.get("Repr-Digest", ""))
    try:
        return found and Checksum(algorithm="sha256", value=base64.b64decode(found[1]).hex())
    except binascii.Error:
        return None
