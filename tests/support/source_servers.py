"""Places that adapters come from, on loopback: a web server with faults to order, S3, and a hub."""

import hashlib
import json
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store


def reach_s3(environment: pytest.MonkeyPatch, endpoint: str) -> None:
    """Sets what a store needs in its environment to read buckets there."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        environment.setenv(name, value)


@dataclass
class WebServer:
    """Files by path. What goes wrong is set by the test.

    Args:
        cut_after: bytes of a body after which connections are cut, while `cuts` lasts.
        ranges: whether Range is honoured.
        redirects: path to Location.
        statuses: path to the status answered instead of the file.
        extra_length: added to the Content-Length announced for whole files.
        required_token: of Authorization, for every file.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    etags: bool = True
    cut_after: int = 0
    cuts: int = 0
    ranges: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    extra_length: int = 0
    required_token: str = ""
    url: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        self.requests.append((handler.path, {k.lower(): v for k, v in handler.headers.items()}))
        if location := self.redirects.get(parts.path):
            _send(handler, 302, {"Location": location})
        elif status := self.statuses.get(parts.path):
            _send(handler, status)
        elif self.required_token and handler.headers.get("Authorization") != f"Bearer {self.required_token}":
            _send(handler, 401)
        elif parts.path not in self.files:
            _send(handler, 404)
        else:
            self._send_file(handler, self.files[parts.path])

    def _send_file(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        headers = dict(self.headers)
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        if self.etags:
            headers["ETag"] = etag
        if handler.headers.get("If-Match") not in (None, etag):
            _send(handler, 412)
            return
        status, start = 200, 0
        if self.ranges and (wanted := handler.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) + (0 if start else self.extra_length)))
        handler.end_headers()
        if self.cuts and len(body) > self.cut_after:
            self.cuts -= 1
            body = body[: self.cut_after]
        with suppress(OSError):  # a client may want the headers only
            handler.wfile.write(body)


class FakeHub(WebServer):
    """The part of the hub's API that reading a model takes; files lie under resolve/COMMIT/."""

    repository = "org/adapter"
    commit = "c0ffee" * 6 + "beef"
    lfs: tuple[str, ...] = ("adapter_model.safetensors",)
    content_url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        api = f"/api/models/{self.repository}"
        if path in (api, f"{api}/revision/v1", f"{api}/revision/{self.commit}"):
            _send_json(handler, {"id": self.repository, "sha": self.commit, "siblings": [], "tags": []})
        elif path == f"{api}/paths-info/{self.commit}":
            wanted = _read_form(handler)["paths"]
            _send_json(handler, [self._entry(name) for name in wanted if self._path(name) in self.files])
        elif path.startswith(f"{api}/revision/"):
            _send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/"):
            _send(handler, 404, {"X-Error-Code": "RepoNotFound"})
        else:
            super().answer(handler)

    def _path(self, name: str) -> str:
        return f"/{self.repository}/resolve/{self.commit}/{name}"

    def put(self, name: str, data: bytes) -> None:
        self.files[self._path(name)] = data

    def _entry(self, name: str) -> dict[str, object]:
        data = self.files[self._path(name)]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": blob}
        if name.rpartition("/")[2] in self.lfs:
            entry["lfs"] = {
                "oid": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 130,
            }
        return entry


@contextmanager
def serving(server: WebServer, context: ssl.SSLContext | None = None) -> Iterator[WebServer]:
    """Serves on a free port of 127.0.0.1, as `server.url` then says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads = True
    if context is not None:
        http_server.socket = context.wrap_socket(http_server.socket, server_side=True)
    scheme = "http" if context is None else "https"
    server.url = f"{scheme}://127.0.0.1:{http_server.server_port}"
    thread = threading.Thread(target=lambda: http_server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield server
    finally:
        http_server.shutdown()
        thread.join()
        http_server.server_close()


@contextmanager
def s3_bucket(bucket: str) -> Iterator[tuple[str, S3Store]]:
    """A bucket of an S3 server: its endpoint, and a store that writes to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
        urllib.request.urlopen(request).close()
        yield (
            endpoint,
            S3Store(
                bucket,
                endpoint=endpoint,
                region="us-east-1",
                access_key_id="key",
                secret_access_key="secret",
                client_options={"allow_http": True},
            ),
        )
    finally:
        server.stop()


def put_folder(store: S3Store, prefix: str, folder) -> None:
    """Writes the files of a folder below a prefix."""
    for path in folder.iterdir():
        obstore.put(store, f"{prefix}/{path.name}", path.read_bytes())


def _read_form(handler: BaseHTTPRequestHandler) -> dict[str, list[str]]:
    body = handler.rfile.read(int(handler.headers["Content-Length"])).decode()
    if handler.headers.get("Content-Type", "").startswith("application/json"):
        return json.loads(body)
    return parse_qs(body)


def _send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": "0", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()


def _send_json(handler: BaseHTTPRequestHandler, value: object) -> None:
    body = json.dumps(value).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
