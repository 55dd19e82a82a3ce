"""Buckets, web servers and the hub, each real on loopback, and what may go wrong on the way."""

import base64
import hashlib
import ssl
from pathlib import Path

import pytest
import trustme

from adapter_store.sources.opening import Sources
from adapter_store.sources.transfers import Patience
from rpc.errors import LorikeetError
from tests.support.source_servers import FakeHub, WebServer, put_folder, reach_s3, s3_bucket, serving
from tests.support.store_adapters import lora_tensors, write_adapter

WEIGHTS = "adapter_model.safetensors"
SOON = Patience(tries=3, first_seconds=0.001)


@pytest.fixture(scope="module")
def s3_server():
    with s3_bucket("adapters") as (endpoint, store):
        yield endpoint, store


@pytest.fixture
def s3(s3_server, monkeypatch):
    endpoint, store = s3_server
    reach_s3(monkeypatch, endpoint)
    return store


@pytest.fixture
def hub(folder, monkeypatch):
    server = FakeHub()
    for path in folder.iterdir():
        server.put(f"sub/{path.name}", path.read_bytes())
    with serving(server):
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


def copy(source: str, target: Path, *prefixes: str, max_bytes: int = 1 << 30) -> list[tuple[int, int]]:
    """Copies and returns the progress that was told."""
    target.mkdir()
    seen: list[tuple[int, int]] = []
    reader = Sources(roots=(), prefixes=prefixes, patience=SOON).open(source)
    reader.copy(target, max_bytes, lambda done, total: seen.append((done, total)))
    return seen


def refusal(source: str, target: Path, *prefixes: str, **options) -> LorikeetError:
    with pytest.raises(LorikeetError) as caught:
        copy(source, target, *prefixes, **options)
    assert "secret" not in str(caught.value)
    return caught.value


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shards", [0, 3])
def test_an_adapter_comes_from_a_bucket(s3, tmp_path, shards):
    folder = write_adapter(tmp_path / "a", shards=shards)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    put_folder(s3, f"team/a{shards}", folder)
    (folder / "README.md").write_text("not wanted")
    seen = copy(f"s3://adapters/team/a{shards}", tmp_path / "out", "s3://adapters/team/")
    (folder / "README.md").unlink()
    assert content(tmp_path / "out") == content(folder)
    total = sum(map(len, content(folder).values()))
    assert seen[-1] == (total, total)


def test_a_large_object_comes_in_ranges(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("adapter_store.sources.object_store._RANGE_BYTES", 1000)
    folder = write_adapter(tmp_path / "a")
    put_folder(s3, "ranges", folder)
    copy("s3://adapters/ranges", tmp_path / "out", "s3://adapters")
    assert content(tmp_path / "out") == content(folder)


def test_an_object_that_is_replaced_between_ranges_is_refused(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("adapter_store.sources.object_store._RANGE_BYTES", 1000)
    put_folder(s3, "replaced", write_adapter(tmp_path / "a"))
    other = write_adapter(tmp_path / "b", lora_tensors(seed=1))
    reader = Sources(roots=(), prefixes=["s3://adapters"], patience=SOON).open("s3://adapters/replaced")

    def replace(done: int, total: int) -> None:
        if done > len((other / "adapter_config.json").read_bytes()) + 1000:
            put_folder(s3, "replaced", other)

    (tmp_path / "out").mkdir()
    with pytest.raises(LorikeetError) as caught:
        reader.copy(tmp_path / "out", 1 << 30, replace)
    assert (caught.value.code.name, caught.value.reason) == ("ABORTED", "SOURCE_CHANGED")


@pytest.mark.parametrize(
    ("source", "code", "reason"),
    [
        ("s3://adapters/nothing", "NOT_FOUND", "NO_CONFIG"),
        ("s3://missing-bucket/a", "NOT_FOUND", "NO_CONFIG"),
        ("s3://elsewhere/a", "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_what_is_not_in_a_bucket_is_said(tmp_path, source, code, reason):
    error = refusal(source, tmp_path / "out", "s3://adapters", "s3://missing-bucket")
    assert (error.code.name, error.reason) == (code, reason)


@pytest.mark.usefixtures("s3")
def test_a_pickle_in_a_bucket_is_refused_and_not_fetched(s3, tmp_path):
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    put_folder(s3, "pickled", folder)
    error = refusal("s3://adapters/pickled", tmp_path / "out", "s3://adapters")
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PICKLE")
    assert "save_pretrained" in error.message
    assert not list((tmp_path / "out").iterdir())


def test_an_endpoint_that_is_away_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    error = refusal("s3://adapters/a", tmp_path / "out", "s3://adapters")
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "SOURCE_UNAVAILABLE")
    assert error.retry_after
    assert "AWS_ENDPOINT_URL" in error.message


def test_an_adapter_comes_from_a_web_server(web, folder, tmp_path):
    seen = copy(f"{web.url}/adapters/a/?X-Signature=secret", tmp_path / "out", f"{web.url}/adapters/")
    assert content(tmp_path / "out") == content(folder)
    assert all(path.endswith("?X-Signature=secret") for path, _ in web.requests)
    assert seen[-1][0] == seen[-1][1]


def test_an_adapter_comes_over_tls(web, folder, tmp_path, monkeypatch):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with serving(WebServer(files=web.files), context) as secure:
        error = refusal(f"{secure.url}/adapters/a", tmp_path / "untrusted", secure.url)
        assert error.code.name == "UNAVAILABLE"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        copy(f"{secure.url}/adapters/a", tmp_path / "out", secure.url)
    assert content(tmp_path / "out") == content(folder)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_goes_on_where_it_was_cut(web, folder, tmp_path, ranges):
    # The first cut meets the look at the headers.
    web.cut_after, web.cuts, web.ranges = 3000, 3 if ranges else 2, ranges
    seen = copy(f"{web.url}/adapters/a", tmp_path / "out", web.url)
    assert content(tmp_path / "out") == content(folder)
    assert any("range" in headers for _, headers in web.requests)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_server_that_cuts_every_connection_at_once_is_given_up(web, tmp_path):
    web.cut_after, web.cuts = 0, 1000
    error = refusal(f"{web.url}/adapters/a", tmp_path / "out", web.url)
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "SOURCE_UNAVAILABLE")


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changes_between_ranges_is_refused(web, folder, tmp_path, etags):
    web.etags = etags
    if not etags:
        web.headers["Last-Modified"] = "Sat, 21 Nov 2026 06:00:00 GMT"
    web.cut_after, web.cuts = 3000, 2
    reader = Sources(roots=(), prefixes=[web.url], patience=SOON).open(f"{web.url}/adapters/a")
    config = (folder / "adapter_config.json").stat().st_size

    def change(done: int, total: int) -> None:
        if done > config:
            path = f"/adapters/a/{WEIGHTS}"
            web.files[path] = web.files[path][:-1] + b"!"
            web.headers["Last-Modified"] = "Sat, 21 Nov 2026 07:00:00 GMT"

    (tmp_path / "out").mkdir()
    with pytest.raises(LorikeetError) as caught:
        reader.copy(tmp_path / "out", 1 << 30, change)
    assert (caught.value.code.name, caught.value.reason) == ("ABORTED", "SOURCE_CHANGED")


def test_a_length_that_lies_is_found(web, tmp_path):
    web.extra_length = 100
    web.etags = False
    error = refusal(f"{web.url}/adapters/a", tmp_path / "out", web.url)
    assert error.code.name in ("UNAVAILABLE", "ABORTED")


def test_a_checksum_that_a_server_gives_is_compared(web, tmp_path):
    digest = base64.b64encode(hashlib.sha256(b"something else").digest()).decode()
    web.headers["Repr-Digest"] = f"sha-256=:{digest}:"
    error = refusal(f"{web.url}/adapters/a", tmp_path / "out", web.url)
    assert (error.code.name, error.reason) == ("DATA_LOSS", "CHECKSUM_MISMATCH")


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://evil.example/adapters/a/adapter_config.json",
        "/secret/adapter_config.json",
        "/adapters/../secret/adapter_config.json",
        "file:///etc/passwd",
        "https://[evil/",
        "http://127.0.0.1:99999/adapters/a/adapter_config.json",
    ],
)
def test_redirects_out_of_what_is_allowed_are_refused(web, tmp_path, location):
    web.redirects["/adapters/a/adapter_config.json"] = location
    web.files["/secret/adapter_config.json"] = b"{}"
    error = refusal(f"{web.url}/adapters/a", tmp_path / "out", f"{web.url}/adapters")
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "REDIRECT_REFUSED")
    assert not any("/secret" in path for path, _ in web.requests)


def test_redirects_within_what_is_allowed_are_followed_but_not_for_ever(web, folder, tmp_path):
    web.files["/adapters/b/w"] = web.files.pop(f"/adapters/a/{WEIGHTS}")
    web.redirects[f"/adapters/a/{WEIGHTS}"] = "/adapters/b/w"
    copy(f"{web.url}/adapters/a", tmp_path / "out", f"{web.url}/adapters")
    assert content(tmp_path / "out") == content(folder)
    web.redirects["/adapters/b/w"] = "/adapters/b/w"
    error = refusal(f"{web.url}/adapters/a", tmp_path / "loop", f"{web.url}/adapters")
    assert error.reason == "TOO_MANY_REDIRECTS"


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "PERMISSION_DENIED"), (500, "UNAVAILABLE"), (404, "NOT_FOUND"), (418, "INVALID_ARGUMENT")],
)
def test_what_a_web_server_answers_is_told(web, tmp_path, status, code):
    web.statuses = dict.fromkeys((f"/adapters/a/{name}" for name in ("adapter_config.json", WEIGHTS)), status)
    error = refusal(f"{web.url}/adapters/a?X-Signature=secret", tmp_path / "out", web.url)
    assert error.code.name == code


def test_a_large_adapter_is_refused_before_it_comes(web, tmp_path):
    error = refusal(f"{web.url}/adapters/a", tmp_path / "out", web.url, max_bytes=1000)
    assert error.reason == "ADAPTER_TOO_LARGE"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_an_adapter_comes_from_the_hub(hub, folder, tmp_path, revision):
    hub.required_token = "hf_secret"
    hub.cut_after, hub.cuts = 3000, 2
    copy(f"hf://org/adapter{revision}/sub", tmp_path / "out", "hf://org/")
    assert content(tmp_path / "out") == content(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_bytes_that_are_not_what_the_hub_promised_are_refused(hub, tmp_path, name):
    genuine = hub._entry(f"sub/{name}")
    hub.put(f"sub/{name}", hub.files[hub._path(f"sub/{name}")][:-1] + b" ")
    entry = hub._entry
    hub._entry = lambda path: genuine if path == f"sub/{name}" else entry(path)
    error = refusal("hf://org/adapter/sub", tmp_path / "out", "hf://org")
    assert (error.code.name, error.reason) == ("DATA_LOSS", "CHECKSUM_MISMATCH")


def test_the_hub_cannot_lead_to_addresses_that_are_not_public(hub, tmp_path):
    with serving(WebServer()) as inside:
        hub.redirects[hub._path(f"sub/{WEIGHTS}")] = inside.url.replace("http://", "https://")
        error = refusal("hf://org/adapter/sub", tmp_path / "out", "hf://org")
    # Refused for its scheme, or as the connection is not to a public address, or as there is no TLS.
    assert error.code.name in ("INVALID_ARGUMENT", "UNAVAILABLE")
    assert inside.requests == []


@pytest.mark.parametrize("location", ["https://content.example:99999/w", "https://[content/w"])
def test_a_place_that_cannot_be_is_not_gone_to(hub, tmp_path, location):
    hub.redirects[hub._path(f"sub/{WEIGHTS}")] = location
    error = refusal("hf://org/adapter/sub", tmp_path / "out", "hf://org")
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "REDIRECT_REFUSED")


@pytest.mark.parametrize(
    ("source", "code", "reason"),
    [
        ("hf://org", "INVALID_ARGUMENT", "BAD_SOURCE"),
        ("hf://org/other", "NOT_FOUND", "NO_SOURCE"),
        ("hf://org/adapter@v9", "NOT_FOUND", "NO_SOURCE"),
        ("hf://org/adapter", "NOT_FOUND", "NO_CONFIG"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_is_not_on_the_hub_is_said(tmp_path, source, code, reason):
    error = refusal(source, tmp_path / "out", "hf://org")
    assert (error.code.name, error.reason) == (code, reason)


def test_a_store_that_stops_does_not_wait_for_a_transfer(web, tmp_path):
    sources = Sources(roots=(), prefixes=[web.url], patience=Patience(first_seconds=3600.0))
    web.statuses["/adapters/a/adapter_config.json"] = 500
    reader = sources.open(f"{web.url}/adapters/a")
    sources.close()
    with pytest.raises(LorikeetError, match="shutting down"):
        reader.copy(tmp_path, 1 << 30, lambda done, total: None)
