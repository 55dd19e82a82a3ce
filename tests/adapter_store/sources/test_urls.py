import pytest

from adapter_store.sources.urls import check_allowed, parse_prefix, parse_url
from rpc.errors import LorikeetError


def allows(prefix: str, source: str) -> bool:
    try:
        check_allowed(parse_url(source), [parse_prefix(prefix)])
    except LorikeetError as error:
        return (error.code.name, error.reason) != ("PERMISSION_DENIED", "SOURCE_NOT_ALLOWED")
    return True


@pytest.mark.parametrize(
    ("prefix", "source"),
    [
        ("s3://adapters/", "s3://adapters/a"),
        ("s3://adapters", "s3://adapters/team/a/"),
        ("S3://adapters/team", "s3://adapters/team/a"),
        ("https://example.com/adapters/", "https://EXAMPLE.com/adapters/a?sig=1"),
        ("hf://org/", "hf://org/a@v1/checkpoint-3"),
        ("hf://org/a", "hf://org/a@v1"),
        ("hf://org/a@v1", "hf://org/a@v1/sub"),
    ],
)
def test_prefixes_let_in_what_is_below_them(prefix, source):
    assert allows(prefix, source)


@pytest.mark.parametrize(
    ("prefix", "source"),
    [
        ("s3://adapters/", "s3://adapters-evil/a"),
        ("s3://adapters/team", "s3://adapters/team-evil/a"),
        ("s3://adapters/", "gs://adapters/a"),
        ("https://example.com/adapters/", "https://example.com.evil.org/adapters/a"),
        ("https://example.com/adapters/", "https://example.com:8443/adapters/a"),
        ("https://example.com/adapters/", "https://example.com/adapters2/a"),
        ("https://example.com/adapters/", "http://example.com/adapters/a"),
        ("hf://org/", "hf://organisation/a"),
        ("hf://org/a@v1", "hf://org/a"),
        ("hf://org/a", "hf://org/ab"),
    ],
)
def test_prefixes_are_compared_part_by_part(prefix, source):
    assert not allows(prefix, source)


@pytest.mark.parametrize(
    "source",
    [
        "s3://adapters/../secrets/a",
        "s3://adapters/%2e%2e/secrets",
        "s3://adapters/a%2fb",
        "s3://adapters//a",
        "s3://adapters/./a",
        "s3://adapters/a\\..\\b",
        "s3://adapters/a?versionId=1",
        "s3://",
        "s3:///a",
        "https://user:secret@example.com/adapters/a",
        "https://example.com\\@evil.org/a",
        "https://example.com/adapters/a#fragment",
        "https://[::1]/adapters/a",
        "https://exämple.com/a",
        "https://example.com/a?sig=ä",
        "hf://org/a@../b",
        "ftp://example.com/a",
        "://a",
    ],
)
def test_what_could_be_read_two_ways_is_refused(source):
    with pytest.raises(LorikeetError) as caught:
        parse_url(source)
    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert "secret" not in caught.value.message


def test_what_clients_read_has_no_query():
    assert parse_url("https://example.com/a/?X-Signature=secret").public == "https://example.com/a"
    assert parse_url("hf://org/a@v1/sub").public == "hf://org/a@v1/sub"


@pytest.mark.parametrize("prefix", ["s3://b/../c", "http://example.com/", "/folder", "https://a/?q", "s3:/b"])
def test_prefixes_that_cannot_work_are_refused(prefix):
    with pytest.raises(ValueError, match=r"\w"):
        parse_prefix(prefix)
