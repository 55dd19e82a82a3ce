"""A catalog in a dictionary, which waits for its followers as the real one does."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import grpc

from lorikeet.v1 import adapters_pb2, store_pb2, store_pb2_grpc
from rpc.errors import invalid_argument, not_found


def digest_of(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


class FakePacks(store_pb2_grpc.PackServiceServicer):
    """Says which packs are in memory; leases none."""

    def __init__(self, store: "FakeStore") -> None:
        self._store = store

    async def GetStatistics(  # noqa: N802
        self, request: store_pb2.GetPackStatisticsRequest, context: grpc.aio.ServicerContext
    ) -> store_pb2.PackStatistics:
        return store_pb2.PackStatistics(
            warm_digests=[digest for digest in request.digests if digest in self._store.warm],
            tiers=[adapters_pb2.TierUsage(tier="memory", entries=len(self._store.warm))],
        )


class FakeStore(store_pb2_grpc.CatalogServiceServicer):
    """Any source loads, its digest a hash of its path; one that begins with "missing" is not found."""

    def __init__(self) -> None:
        self.warm: set[str] = set()
        self.digests: dict[str, str] = {}
        self.tenants: dict[str, str] = {}
        self.tenants_that_unload: list[str] = []
        self.templates: dict[str, str] = {}
        self.templates_asked = 0
        self.templates_open = asyncio.Event()
        self.templates_open.set()
        # Watchers get their second event, and all others, once this is set.
        self.next_event = asyncio.Event()
        self.next_event.set()
        self.upload_messages: list[adapters_pb2.UploadAdapterRequest] = []
        self.uploads_running = 0
        self.revision = 1
        self.watchers = 0
        self.prefetches: list[str] = []
        self.acknowledged: dict[int, int] = {}
        self.changed = asyncio.Condition()
        self._queues: dict[int, asyncio.Queue[store_pb2.FollowResponse]] = {}
        self._next_follower = 0

    async def until(self, condition) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def point(self, name: str, digest: str) -> None:
        """Moves a name (an empty digest removes it); returns once all followers act by it."""
        self.revision += 1
        revision = self.revision
        if digest:
            self.digests[name] = digest
        else:
            self.digests.pop(name, None)
        change = store_pb2.FollowResponse(revision=revision, pointers=[self._pointer(name, digest)])
        for queue in self._queues.values():
            queue.put_nowait(change)
        await self.until(lambda: all(done >= revision for done in self.acknowledged.values()))

    async def Follow(  # noqa: N802
        self, request_iterator: AsyncIterator[store_pb2.FollowRequest], context: grpc.aio.ServicerContext
    ) -> None:
        await anext(request_iterator)
        follower = self._next_follower
        self._next_follower += 1
        queue = self._queues[follower] = asyncio.Queue()
        self.acknowledged[follower] = 0
        reader = asyncio.create_task(self._read(follower, request_iterator))
        pointers = [self._pointer(name, digest) for name, digest in self.digests.items()]
        try:
            await context.write(
                store_pb2.FollowResponse(revision=self.revision, snapshot=True, pointers=pointers)
            )
            while True:
                await context.write(await queue.get())
        finally:
            reader.cancel()
            del self._queues[follower], self.acknowledged[follower]

    async def _read(self, follower: int, requests: AsyncIterator[store_pb2.FollowRequest]) -> None:
        async for request in requests:
            self.acknowledged[follower] = request.acknowledged_revision
            async with self.changed:
                self.changed.notify_all()

    def _pointer(self, name: str, digest: str) -> store_pb2.AdapterPointer:
        return store_pb2.AdapterPointer(
            name=name,
            digest=digest,
            tenant=self.tenants.get(name, ""),
            has_chat_template=digest in self.templates,
        )

    def _adapter(self, name: str) -> adapters_pb2.Adapter:
        return adapters_pb2.Adapter(
            name=name,
            tenant=self.tenants.get(name, ""),
            digest=self.digests[name],
            state=adapters_pb2.ADAPTER_STATE_ACTIVE,
            revision=self.revision,
        )

    def _known(self, name: str) -> None:
        if name not in self.digests:
            raise not_found("ADAPTER_NOT_FOUND", f"the store knows no {name}", adapter=name)

    async def GetChatTemplate(  # noqa: N802
        self, request: store_pb2.GetChatTemplateRequest, context: grpc.aio.ServicerContext
    ) -> store_pb2.ChatTemplate:
        self.templates_asked += 1
        async with self.changed:
            self.changed.notify_all()
        await self.templates_open.wait()
        if request.digest not in self.templates:
            raise not_found("NO_CHAT_TEMPLATE", "no such adapter is loaded")
        return store_pb2.ChatTemplate(text=self.templates[request.digest])

    async def Load(  # noqa: N802
        self, request: adapters_pb2.LoadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.LoadAdapterResponse:
        if request.source.startswith("missing"):
            raise not_found("SOURCE_NOT_FOUND", f"{request.source} does not exist", source=request.source)
        self.tenants[request.name] = request.tenant
        await self.point(request.name, digest_of(request.source))
        return adapters_pb2.LoadAdapterResponse(adapter=self._adapter(request.name), changed=True)

    async def Upload(  # noqa: N802
        self,
        request_iterator: AsyncIterator[adapters_pb2.UploadAdapterRequest],
        context: grpc.aio.ServicerContext,
    ) -> adapters_pb2.LoadAdapterResponse:
        self.uploads_running += 1
        self.upload_messages = []
        try:
            async for message in request_iterator:
                self.upload_messages.append(message)
                if message.start.name == "refused":
                    raise invalid_argument("BAD_NAME", "the store refuses it half-way")
                async with self.changed:
                    self.changed.notify_all()
        finally:
            self.uploads_running -= 1
            async with self.changed:
                self.changed.notify_all()
        start = self.upload_messages[0].start
        self.tenants[start.name] = start.tenant
        await self.point(start.name, digest_of(start.config_json))
        return adapters_pb2.LoadAdapterResponse(adapter=self._adapter(start.name), changed=True)

    async def Unload(  # noqa: N802
        self, request: adapters_pb2.UnloadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.UnloadAdapterResponse:
        self._known(request.name)
        self.tenants_that_unload.append(request.tenant)
        adapter = self._adapter(request.name)
        await self.point(request.name, "")
        return adapters_pb2.UnloadAdapterResponse(adapter=adapter)

    async def Get(  # noqa: N802
        self, request: adapters_pb2.GetAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.Adapter:
        self._known(request.name)
        return self._adapter(request.name)

    async def List(  # noqa: N802
        self, request: adapters_pb2.ListAdaptersRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.ListAdaptersResponse:
        return adapters_pb2.ListAdaptersResponse(
            adapters=[self._adapter(name) for name in sorted(self.digests)]
        )

    async def Prefetch(  # noqa: N802
        self, request: adapters_pb2.PrefetchAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.PrefetchAdapterResponse:
        if request.adapter.removeprefix("b3:") not in self.digests.values():
            self._known(request.adapter)
        self.prefetches.append(request.adapter)
        return adapters_pb2.PrefetchAdapterResponse()

    async def Watch(  # noqa: N802
        self, request: adapters_pb2.WatchAdaptersRequest, context: grpc.aio.ServicerContext
    ) -> None:
        self.watchers += 1
        try:
            for name in sorted(self.digests):
                await context.write(adapters_pb2.AdapterEvent(adapter=self._adapter(name)))
                await self.next_event.wait()
            await asyncio.Event().wait()
        finally:
            self.watchers -= 1
            async with self.changed:
                self.changed.notify_all()
