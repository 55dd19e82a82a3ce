from contextlib import asynccontextmanager

import grpc
import pytest

from frontend.adapters.catalog import Catalog
from frontend.adapters.references import AdapterRef
from frontend.adapters.resolving import Resolver
from lorikeet.v1 import store_pb2, store_pb2_grpc
from rpc.channel import open_channel
from rpc.errors import LorikeetError, not_found, unavailable
from rpc.server import Server
from rpc.tokens import Caller


class Store(store_pb2_grpc.CatalogServiceServicer):
    """Resolves every name, or fails as told."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.asked: list[str] = []
        self.error: LorikeetError | None = None

    async def Resolve(self, request, context):  # noqa: N802
        self.asked.append(request.name)
        if self.error is not None:
            raise self.error
        pointer = store_pb2.AdapterPointer(name=request.name, digest="d" * 64)
        self.catalog.apply(store_pb2.FollowResponse(revision=2, pointers=[pointer]))
        return pointer


@asynccontextmanager
async def world():
    catalog = Catalog(has_store=True)
    catalog.apply(store_pb2.FollowResponse(revision=1, snapshot=True))
    store = Store(catalog)
    server = Server()
    server.add("lorikeet.v1.CatalogService", store_pb2_grpc.add_CatalogServiceServicer_to_server, store)
    channel = open_channel(await server.start("127.0.0.1:0"))
    yield catalog, store, Resolver(catalog=catalog, stub=store_pb2_grpc.CatalogServiceStub(channel))
    await channel.close()
    await server.drain(0)


async def test_an_unknown_name_is_brought_by_the_store():
    async with world() as (catalog, store, resolver):
        for _ in range(2):
            await resolver.prepare(AdapterRef(name="a"), 10)
            assert catalog.resolve(AdapterRef(name="a")) == "d" * 64
        assert store.asked == ["a"]


async def test_a_store_that_resolves_nothing_is_asked_once():
    async with world() as (_, store, resolver):
        store.error = not_found("RESOLVING_OFF", "off")
        await resolver.prepare(AdapterRef(name="a"), 10)
        await resolver.prepare(AdapterRef(name="b"), 10)
        assert store.asked == ["a"]
        resolver.store_changed()
        await resolver.prepare(AdapterRef(name="c"), 10)
        assert store.asked == ["a", "c"]


async def test_why_an_adapter_could_not_be_loaded_is_told():
    async with world() as (_, store, resolver):
        store.error = unavailable("SOURCE_UNAVAILABLE", "the bucket is away")
        with pytest.raises(LorikeetError, match="the bucket is away") as caught:
            await resolver.prepare(AdapterRef(name="a"), None)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_the_base_model_and_digests_ask_nobody():
    async with world() as (_, store, resolver):
        await resolver.prepare(AdapterRef(), 10)
        await resolver.prepare(AdapterRef(digest="e" * 64), 10)
        assert store.asked == []


async def test_what_is_nowhere_and_what_is_another_tenants_are_told_alike():
    async with world() as (catalog, store, resolver):
        theirs = store_pb2.AdapterPointer(name="theirs", digest="d" * 64, tenant="t")
        catalog.apply(store_pb2.FollowResponse(revision=2, pointers=[theirs]))
        store.error = not_found("ADAPTER_NOT_FOUND", "the store finds none")
        told = []
        for name in ("theirs", "nobody"):
            await resolver.prepare(AdapterRef(name=name), 10)
            with pytest.raises(LorikeetError) as caught:
                catalog.resolve(AdapterRef(name=name), Caller(tenant="u"))
            told.append(caught.value.message.replace(name, "NAME"))
        assert told[0] == told[1]
        assert store.asked == ["nobody"]
