import asyncio

import grpc
import pytest

from frontend.catalog import Catalog
from frontend.validation import AdapterRef
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


def test_an_unknown_name_says_how_to_load_it():
    catalog = Catalog(has_store=True)
    catalog.apply(response(1, snapshot=True))
    with pytest.raises(LorikeetError, match=r'"sql".*lorikeet adapters load sql'):
        catalog.resolve(SQL)


def test_the_base_and_pinned_digests_need_no_names():
    catalog = Catalog(has_store=True)
    assert catalog.resolve(AdapterRef()) == ""
    assert catalog.resolve(AdapterRef(digest="f" * 64)) == "f" * 64


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
