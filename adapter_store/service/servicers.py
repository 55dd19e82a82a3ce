"""The store's two gRPC services: decode, call, encode."""

from collections.abc import AsyncIterator, Callable

import grpc

from adapter_store.loads.admin import Admin
from adapter_store.loads.request import LoadRequest
from adapter_store.loads.resolving import Resolver
from adapter_store.loads.uploads import Uploads
from adapter_store.peers.executors import Executors, Held, LeaseSession
from adapter_store.peers.followers import Followers, Update
from adapter_store.peers.pack_chunks import PackChunks
from adapter_store.peers.streams import converse
from adapter_store.peers.watchers import Watchers
from adapter_store.records.layouts import Layouts
from adapter_store.service.chat_templates import ChatTemplates
from adapter_store.service.encoding import adapter_message, event_message, follow_message, lease_messages
from adapter_store.sources.opening import Sources
from lorikeet.v1 import adapters_pb2, store_pb2, store_pb2_grpc
from rpc.errors import invalid_argument
from rpc.first_messages import FirstMessages

Context = grpc.aio.ServicerContext


class CatalogServicer(store_pb2_grpc.CatalogServiceServicer):
    """Names and versions."""

    def __init__(
        self,
        *,
        admin: Admin,
        sources: Sources,
        resolver: Resolver,
        uploads: Uploads,
        followers: Followers,
        watchers: Watchers,
        templates: ChatTemplates,
        first_messages: FirstMessages,
    ) -> None:
        self._first_messages = first_messages
        self._templates = templates
        self._admin = admin
        self._sources = sources
        self._resolver = resolver
        self._uploads = uploads
        self._followers = followers
        self._watchers = watchers

    async def Load(  # noqa: N802
        self, request: adapters_pb2.LoadAdapterRequest, context: Context
    ) -> adapters_pb2.LoadAdapterResponse:
        wanted = LoadRequest(
            name=request.name,
            reader=self._sources.open(request.source),
            expected_digest=request.expected_digest,
            pinned=request.pinned if request.HasField("pinned") else None,
            tenant=request.tenant,
        )
        view, changed = await self._admin.load(wanted)
        return adapters_pb2.LoadAdapterResponse(
            adapter=adapter_message(view, with_report=True), changed=changed
        )

    async def Upload(  # noqa: N802
        self, request_iterator: AsyncIterator[adapters_pb2.UploadAdapterRequest], context: Context
    ) -> adapters_pb2.LoadAdapterResponse:
        view, changed = await self._uploads.receive(request_iterator)
        return adapters_pb2.LoadAdapterResponse(
            adapter=adapter_message(view, with_report=True), changed=changed
        )

    async def Unload(  # noqa: N802
        self, request: adapters_pb2.UnloadAdapterRequest, context: Context
    ) -> adapters_pb2.UnloadAdapterResponse:
        return adapters_pb2.UnloadAdapterResponse(
            adapter=adapter_message(
                await self._admin.unload(
                    request.name,
                    force=request.force,
                    expected_digest=request.expected_digest,
                    tenant=request.tenant,
                )
            )
        )

    async def Rollback(  # noqa: N802
        self, request: adapters_pb2.RollbackAdapterRequest, context: Context
    ) -> adapters_pb2.RollbackAdapterResponse:
        view = await self._admin.roll_back(
            request.name,
            digest=request.digest,
            expected_digest=request.expected_digest,
            tenant=request.tenant,
        )
        return adapters_pb2.RollbackAdapterResponse(adapter=adapter_message(view, with_report=True))

    async def Resolve(  # noqa: N802
        self, request: store_pb2.ResolveAdapterRequest, context: Context
    ) -> store_pb2.AdapterPointer:
        view = await self._resolver.resolve(request.name)
        return store_pb2.AdapterPointer(
            name=view.name,
            digest=view.digest,
            has_chat_template=view.version is not None and view.version.has_chat_template,
        )

    async def GetChatTemplate(  # noqa: N802
        self, request: store_pb2.GetChatTemplateRequest, context: Context
    ) -> store_pb2.ChatTemplate:
        return store_pb2.ChatTemplate(text=await self._templates.get(request.digest))

    async def Get(  # noqa: N802
        self, request: adapters_pb2.GetAdapterRequest, context: Context
    ) -> adapters_pb2.Adapter:
        return adapter_message(self._admin.get(request.name), with_report=True)

    async def List(  # noqa: N802
        self, request: adapters_pb2.ListAdaptersRequest, context: Context
    ) -> adapters_pb2.ListAdaptersResponse:
        views, token = self._admin.page(request.page_size, request.page_token)
        return adapters_pb2.ListAdaptersResponse(
            adapters=[adapter_message(view) for view in views], next_page_token=token
        )

    async def Prefetch(  # noqa: N802
        self, request: adapters_pb2.PrefetchAdapterRequest, context: Context
    ) -> adapters_pb2.PrefetchAdapterResponse:
        self._admin.prefetch(request.adapter)
        return adapters_pb2.PrefetchAdapterResponse()

    async def Watch(self, request: adapters_pb2.WatchAdaptersRequest, context: Context) -> None:  # noqa: N802
        watcher = self._admin.watch(request.name)
        try:
            while (event := await watcher.next()) is not None:
                await context.write(event_message(event))
        finally:
            self._watchers.leave(watcher)

    async def Follow(  # noqa: N802
        self, request_iterator: AsyncIterator[store_pb2.FollowRequest], context: Context
    ) -> None:
        first = await self._first_messages.read(request_iterator)
        if first is None:
            return
        follower = self._admin.follow(first.acknowledged_revision)

        async def send(update: Update) -> None:
            await context.write(await follow_message(update))

        try:
            await converse(
                requests=request_iterator,
                receive=lambda request: self._followers.acknowledge(follower, request.acknowledged_revision),
                outgoing=follower,
                send=send,
            )
        finally:
            self._followers.leave(follower)


class PackServicer(store_pb2_grpc.PackServiceServicer):
    """Packs in shared memory, for executors."""

    def __init__(
        self,
        *,
        layouts: Layouts,
        executors: Executors,
        chunks: PackChunks,
        arena_file: str,
        arena_bytes: int,
        statistics: Callable[[store_pb2.GetPackStatisticsRequest], store_pb2.PackStatistics],
        first_messages: FirstMessages,
    ) -> None:
        self._first_messages = first_messages
        self._layouts = layouts
        self._executors = executors
        self._chunks = chunks
        self._arena_file = arena_file
        self._arena_bytes = arena_bytes
        self._statistics = statistics

    async def RegisterLayout(  # noqa: N802
        self, request: store_pb2.RegisterLayoutRequest, context: Context
    ) -> store_pb2.RegisterLayoutResponse:
        layout = await self._layouts.register(request.layout)
        return store_pb2.RegisterLayoutResponse(
            layout_digest=layout.digest, arena_file=self._arena_file, arena_bytes=self._arena_bytes
        )

    async def Lease(  # noqa: N802
        self, request_iterator: AsyncIterator[store_pb2.LeaseRequest], context: Context
    ) -> None:
        hello = await self._first_messages.read(request_iterator)
        if hello is None or hello.WhichOneof("message") != "hello":
            raise invalid_argument("NO_HELLO", "the first message of a Lease stream is LeaseHello")
        held = [
            Held(digest=lease.digest, header_offset=lease.header_offset, generation=lease.generation)
            for lease in hello.hello.held
        ]
        session = self._executors.open(self._layouts.get(hello.hello.layout_digest), held)
        try:
            await converse(
                requests=request_iterator,
                receive=lambda request: _dispatch(session, request),
                outgoing=session.outbox,
                send=lambda message: context.write(lease_messages(message, session.outbox.take)),
            )
        finally:
            self._executors.close(session)

    async def FetchPack(self, request: store_pb2.FetchPackRequest, context: Context) -> None:  # noqa: N802
        layout = self._layouts.get(request.layout_digest)
        async with self._chunks.open(request.digest, layout) as (manifest, chunks):
            await context.write(store_pb2.PackChunk(manifest=manifest))
            async for chunk in chunks:
                await context.write(store_pb2.PackChunk(data=chunk))

    async def GetStatistics(  # noqa: N802
        self, request: store_pb2.GetPackStatisticsRequest, context: Context
    ) -> store_pb2.PackStatistics:
        return self._statistics(request)


def _dispatch(session: LeaseSession, request: store_pb2.LeaseRequest) -> None:
    match request.WhichOneof("message"):
        case "acquire":
            session.acquire(request.acquire.lease, request.acquire.digest)
        case "release":
            session.release(request.release.lease)
        case "prefetch":
            session.prefetch(request.prefetch.digest)
        case "used":
            session.used(request.used.digest)
        case "retired":
            session.retired(request.retired.digest)
        case "batch":
            for each in request.batch.requests:
                if each.WhichOneof("message") == "batch":
                    raise invalid_argument("NESTED_BATCH", "a LeaseBatch has no batches in it")
                _dispatch(session, each)
        case "hello":
            raise invalid_argument("SECOND_HELLO", "LeaseHello is the first message only")
        case _:
            raise invalid_argument(
                "UNKNOWN_MESSAGE", "this store does not know that message: versions differ"
            )
