"""The servicers: decode, call, encode. Errors are mapped by the interceptor in `rpc`."""

# ruff: noqa: N802 - gRPC names methods as the protos do

import contextlib
from collections.abc import AsyncIterator

import grpc

from frontend.adapters.admin import AdapterAdmin
from frontend.adapters.rights import AdapterRights, hidden
from frontend.adapters.statistics import AdapterStatistics
from frontend.requests.generation import Generation
from frontend.requests.tokenization import Tokenization
from lorikeet.v1 import adapters_pb2, adapters_pb2_grpc, generation_pb2, generation_pb2_grpc
from rpc.access import decide_again

GENERATION_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
ADAPTER_SERVICE = adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, generation: Generation, tokenization: Tokenization) -> None:
        self._generation = generation
        self._tokenization = tokenization

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> None:
        await self._generation.generate(request, context.write, remaining_seconds=context.time_remaining())

    async def Tokenize(
        self, request: generation_pb2.TokenizeRequest, context: grpc.aio.ServicerContext
    ) -> generation_pb2.TokenizeResponse:
        return await self._tokenization.tokenize(request)

    async def Detokenize(
        self, request: generation_pb2.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> generation_pb2.DetokenizeResponse:
        return await self._tokenization.detokenize(request)

    async def GetModel(
        self, request: generation_pb2.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> generation_pb2.GetModelResponse:
        return self._generation.describe_model()


class AdapterServicer(adapters_pb2_grpc.AdapterServiceServicer):
    def __init__(self, admin: AdapterAdmin, statistics: AdapterStatistics, rights: AdapterRights) -> None:
        self._admin = admin
        self._statistics = statistics
        self._rights = rights

    async def LoadAdapter(
        self, request: adapters_pb2.LoadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.LoadAdapterResponse:
        return await self._admin.load(self._rights.to_load(request), context.time_remaining())

    async def UploadAdapter(
        self,
        request_iterator: AsyncIterator[adapters_pb2.UploadAdapterRequest],
        context: grpc.aio.ServicerContext,
    ) -> adapters_pb2.LoadAdapterResponse:
        return await self._admin.upload(self._rights.to_upload(request_iterator), context.time_remaining())

    async def UnloadAdapter(
        self, request: adapters_pb2.UnloadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.UnloadAdapterResponse:
        wanted = self._rights.to_change(request)
        return await self._admin.move(self._admin.store.Unload, wanted, context.time_remaining())

    async def RollbackAdapter(
        self, request: adapters_pb2.RollbackAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.RollbackAdapterResponse:
        wanted = self._rights.to_change(request)
        return await self._admin.move(self._admin.store.Rollback, wanted, context.time_remaining())

    async def GetAdapter(
        self, request: adapters_pb2.GetAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.Adapter:
        self._rights.to_see(request.name)
        adapter = await self._admin.unary(self._admin.store.Get, request, context.time_remaining())
        if not self._rights.sees(adapter):
            # The store knows more names than this frontend has heard of yet.
            raise hidden(request.name)
        return adapter

    async def ListAdapters(
        self, request: adapters_pb2.ListAdaptersRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.ListAdaptersResponse:
        page = await self._admin.unary(self._admin.store.List, request, context.time_remaining())
        # A page may be shorter than asked for, even empty, and still be followed by another.
        seen = [adapter for adapter in page.adapters if self._rights.sees(adapter)]
        return adapters_pb2.ListAdaptersResponse(adapters=seen, next_page_token=page.next_page_token)

    async def PrefetchAdapter(
        self, request: adapters_pb2.PrefetchAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.PrefetchAdapterResponse:
        self._rights.to_prefetch(request.adapter)
        return await self._admin.prefetch(request, context.time_remaining())

    async def WatchAdapters(
        self, request: adapters_pb2.WatchAdaptersRequest, context: grpc.aio.ServicerContext
    ) -> None:
        async with contextlib.aclosing(self._admin.watch(request)) as events:
            async for event in events:
                # Its token may have gone since the last one.
                decide_again()
                if self._rights.sees_event(event.adapter):
                    await context.write(event)

    async def GetAdapterStatistics(
        self, request: adapters_pb2.GetAdapterStatisticsRequest, context: grpc.aio.ServicerContext
    ) -> adapters_pb2.GetAdapterStatisticsResponse:
        self._rights.to_see_all()
        return await self._statistics.read(request.limit)
