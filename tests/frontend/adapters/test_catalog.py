import asyncio

import grpc
import pytest

from frontend.adapters.catalog import Catalog
from frontend.adapters.references import AdapterRef
from lorikeet.v1 import store_pb2
from rpc.errors import LorikeetError

SQL = AdapterRef(name="sql")


def response(revision: int, snapshot: bool = False, **digests: str) -> store_pb2.FollowResponse:
    pointers = [store_pb2.AdapterPointer(name=name, digest=digest) for name, digest in digests.items()]
    return store_pb2.FollowResponse(revision=revision, snapshot=snapshot, pointers=pointers)


def code_of(catalog: Catalog, adapter: AdapterRef) -> grpc.StatusCode:
    with pytest.raises(LorikeetError) as caught:
        catalog.resolve(adapter)
    return caught.value.code


def test_names_follow_the_store():
    catalog = Catalog(has_store=True)
    assert not catalog.known
    assert code_of(catalog, SQL) is grpc.StatusCode.UNAVAILABLE
    catalog.apply(response(3, snapshot=True, sql="a", other="b"))
    assert catalog.known
    assert catalog.resolve(SQL) == "a"
    catalog.apply(response(4, sql="c"))
    assert (catalog.resolve(SQL), catalog.resolve(AdapterRef(name="other"))) == ("c", "b")
    catalog.apply(response(5, sql=""))
    assert code_of(catalog, SQL) is grpc.StatusCode.NOT_FOUND


def test_a_snapshot_replaces_everything():
    catalog = Catalog(has_store=True)
    catalog.apply(response(3, snapshot=True, sql="a"))
    catalog.apply(response(9, snapshot=True, other="b"))
    assert code_of(catalog, SQL) is grpc.StatusCode.NOT_FOUND


async def test_a_large_snapshot_lets_others_go_on_and_counts_all_at_once():
    catalog = Catalog(has_store=True)
    catalog.apply(response(3, snapshot=True, sql="a"))
    many = {f"name-{number}": "b" for number in range(5_000)}
    applying = asyncio.create_task(catalog.apply_in_turns(response(9, snapshot=True, **many)))
    seen: list[tuple[int, str]] = []
    while not applying.done():
        seen.append((catalog.revision, catalog.resolve(SQL)))
        assert code_of(catalog, AdapterRef(name="name-0")) is grpc.StatusCode.NOT_FOUND
        await asyncio.sleep(0)
    assert len(seen) > 5
    assert set(seen) == {(3, "a")}
    assert (catalog.revision, catalog.resolve(AdapterRef(name="name-4999"))) == (9, "b")
    assert code_of(catalog, SQL) is grpc.StatusCode.NOT_FOUND


async def test_a_large_update_lets_others_go_on_and_its_revision_comes_last():
    catalog = Catalog(has_store=True)
    catalog.apply(response(3, snapshot=True, sql="a"))
    heard: list[tuple[str, str]] = []
    catalog.on_abort(lambda name, digest: heard.append((name, digest)))
    update = response(9, snapshot=False, **{f"name-{number}": "b" for number in range(5_000)})
    removed = store_pb2.AdapterPointer(name="sql", abort_running=True)
    for pointer in (store_pb2.AdapterPointer(name="sql", digest="c"), removed):
        update.pointers.insert(2_000, pointer)
    applying = asyncio.create_task(catalog.apply_in_turns(update))
    seen: list[str] = []
    while not applying.done():
        seen.append(catalog.resolve(SQL))
        assert catalog.revision == 3
        # What ends with the name ends before anything begins under it again.
        assert heard == ([("sql", "a")] if seen[-1] == "c" else [])
        await asyncio.sleep(0)
    assert min(seen.count("a"), seen.count("c")) > 2
    assert (catalog.revision, len(catalog.names_of("b"))) == (9, 5_000)


def test_an_unknown_name_says_how_to_load_it():
    catalog = Catalog(has_store=True)
    catalog.apply(response(1, snapshot=True))
    with pytest.raises(LorikeetError, match=r'"sql".*lorikeet adapters load sql'):
        catalog.resolve(SQL)


def test_a_digest_has_the_names_that_point_to_it_now():
    catalog = Catalog(has_store=True)
    catalog.apply(response(3, snapshot=True, one="a", two="a", three="b"))
    assert (catalog.names_of("a"), catalog.names_of("b"), catalog.names_of("c")) == (
        ["one", "two"],
        ["three"],
        [],
    )
    catalog.apply(response(4, one="b"))
    catalog.apply(response(5, two=""))
    assert (catalog.names_of("a"), catalog.names_of("b")) == ([], ["three", "one"])
    catalog.apply(response(6, snapshot=True, one="a"))
    assert (catalog.names_of("a"), catalog.names_of("b")) == (["one"], [])


def test_a_digest_stands_for_itself_while_a_name_points_to_it():
    catalog = Catalog(has_store=True)
    by_digest = AdapterRef(digest="f" * 64)
    assert catalog.resolve(AdapterRef()) == ""
    assert code_of(catalog, by_digest) is grpc.StatusCode.UNAVAILABLE
    catalog.apply(response(3, snapshot=True, sql="f" * 64, other="f" * 64))
    catalog.apply(response(4, sql=""))
    assert catalog.resolve(by_digest) == "f" * 64
    catalog.apply(response(5, other=""))
    assert code_of(catalog, by_digest) is grpc.StatusCode.NOT_FOUND


def test_a_forced_unload_is_told_with_the_digest_that_no_other_name_has():
    catalog = Catalog(has_store=True)
    heard: list[tuple[str, str]] = []
    catalog.on_abort(lambda name, digest: heard.append((name, digest)))
    catalog.apply(response(3, snapshot=True, a="x", b="x", c="z"))
    for revision, name in enumerate("abc", start=4):
        pointer = store_pb2.AdapterPointer(name=name, abort_running=name != "c")
        catalog.apply(store_pb2.FollowResponse(revision=revision, pointers=[pointer]))
    assert heard == [("a", ""), ("b", "x")]


def test_a_snapshot_tells_of_forced_unloads_while_there_was_no_stream():
    catalog = Catalog(has_store=True)
    heard: list[tuple[str, str]] = []
    catalog.on_abort(lambda name, digest: heard.append((name, digest)))
    catalog.apply(response(3, snapshot=True, a="x", b="y", c="z", d="z"))
    pointers = [store_pb2.AdapterPointer(name=name, abort_running=True) for name in "abcn"]
    pointers += [store_pb2.AdapterPointer(name=name, digest=digest) for name, digest in ("by", "dz")]
    catalog.apply(store_pb2.FollowResponse(revision=9, snapshot=True, pointers=pointers))
    assert heard == [("a", "x"), ("b", ""), ("c", ""), ("n", "")]
    assert catalog.resolve(AdapterRef(name="b")) == "y"


def test_without_a_store_there_is_only_the_base():
    catalog = Catalog(has_store=False)
    assert catalog.known
    assert catalog.resolve(AdapterRef()) == ""
    assert code_of(catalog, SQL) is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_revision_can_be_waited_for():
    catalog = Catalog(has_store=True)
    waiting = asyncio.create_task(catalog.reach(4))
    await asyncio.sleep(0)
    catalog.apply(response(3, snapshot=True))
    await asyncio.sleep(0)
    assert not waiting.done()
    catalog.apply(response(5))
    await waiting
    await catalog.reach(2)
