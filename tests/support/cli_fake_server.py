# ruff: noqa: N802 (gRPC names its methods so)
"""A frontend's public services without a model: every answer can be worked out by hand.

Generate answers "NAME:" of the adapter and the prompt's words in reverse order, one response a word.
"""

import contextlib
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from lorikeet.v1 import adapters_pb2 as adapters
from lorikeet.v1 import adapters_pb2_grpc, generation_pb2_grpc
from lorikeet.v1 import generation_pb2 as generation
from rpc.errors import LorikeetError, not_found, resource_exhausted, to_status, unavailable

DIGEST = "ab" * 32


def fail(context: grpc.ServicerContext, error: LorikeetError) -> None:
    context.abort_with_status(rpc_status.to_status(to_status(error)))


@dataclass
class FakeServer:
    """What was loaded and asked; `hold` makes Generate stop after its first word until the client leaves."""

    target: str = ""
    names: dict[str, adapters.Adapter] = field(default_factory=dict)
    # Those that change something, in order.
    changes: list[Message] = field(default_factory=list)
    requests: list[generation.GenerateRequest] = field(default_factory=list)
    statistics: adapters.GetAdapterStatisticsResponse = field(
        default_factory=adapters.GetAdapterStatisticsResponse
    )
    has_chat_template: bool = True
    hold: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)


class _Generation(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, state: FakeServer) -> None:
        self.state = state

    def Generate(self, request: generation.GenerateRequest, context: grpc.ServicerContext) -> Iterator:
        # From the beginning: one that the client has left is not gone on with after its first word.
        if self.state.hold and not context.add_callback(self.state.cancelled.set):
            self.state.cancelled.set()
        self.state.requests.append(request)
        if request.adapter and request.adapter not in self.state.names:
            fail(context, not_found("ADAPTER_NOT_FOUND", f"no adapter {request.adapter!r}: load it first"))
        if request.text == "overload":
            fail(context, resource_exhausted("QUEUE_FULL", "the queue is full", retry_after=2.0))
        prompt = request.text or " ".join(str(token) for token in request.tokens.ids)
        if request.HasField("chat"):
            prompt = request.chat.messages[-1].content
        words = [f"{request.adapter or 'base'}:", *reversed(prompt.split())]
        for index in range(max(request.n, 1)):
            for position, word in enumerate(words):
                last = position == len(words) - 1
                response = generation.GenerateResponse(
                    index=index, text=word if last else word + " ", token_ids=[position]
                )
                if last:
                    response.finish_reason = generation.FINISH_REASON_STOP
                if last and index == max(request.n, 1) - 1:
                    usage = generation.Usage(prompt_tokens=len(prompt.split()), completion_tokens=len(words))
                    response.summary.CopyFrom(generation.Summary(adapter=request.adapter, usage=usage))
                yield response
                if self.state.hold:
                    # Longer than any test waits: a client that does not leave must not see an end.
                    self.state.cancelled.wait(timeout=120)
                    return

    def GetModel(self, request: generation.GetModelRequest, context: grpc.ServicerContext):
        return generation.GetModelResponse(
            name="fake-1b",
            model_type="qwen3",
            base_digest=DIGEST,
            vocab_size=640,
            context_length=512,
            eos_token_ids=[1, 2],
            has_chat_template=self.state.has_chat_template,
            default_sampling=generation.SamplingParams(temperature=0.5),
            adapter_slots=8,
            max_lora_rank=64,
            version="0",
        )


class _Adapters(adapters_pb2_grpc.AdapterServiceServicer):
    def __init__(self, state: FakeServer) -> None:
        self.state = state

    def GetAdapterStatistics(
        self, request: adapters.GetAdapterStatisticsRequest, context: grpc.ServicerContext
    ):
        return self.state.statistics

    def LoadAdapter(self, request: adapters.LoadAdapterRequest, context: grpc.ServicerContext):
        if "missing" in request.source:
            fail(context, not_found("SOURCE_NOT_FOUND", f"nothing at {request.source}"))
        if "away" in request.source:
            fail(context, unavailable("SOURCE_UNAVAILABLE", f"{request.source}: no answer, 6 times in a row"))
        self.state.changes.append(request)
        adapter = adapters.Adapter(
            name=request.name,
            pinned=request.pinned,
            digest=DIGEST,
            state=adapters.ADAPTER_STATE_ACTIVE,
            source=request.source,
            pack_bytes=1536,
            max_rank=8,
            tier=adapters.ADAPTER_TIER_WARM,
            report=adapters.AdapterReport(
                modules=[
                    adapters.ModuleReport(module="model.layers.0.self_attn.q_proj", rank=8, scaling=2.0),
                    adapters.ModuleReport(
                        module="model.layers.0.mlp.experts.*.up_proj",
                        rank=4,
                        scaling=1.0,
                        delta_norm=0.5,
                        least_delta_norm=0.25,
                        experts=128,
                        parts=[adapters.ADAPTED_PART_LORA],
                    ),
                ]
            ),
        )
        changed = request.name not in self.state.names
        self.state.names[request.name] = adapter
        return adapters.LoadAdapterResponse(adapter=adapter, changed=changed)

    def UploadAdapter(
        self, request_iterator: Iterator[adapters.UploadAdapterRequest], context: grpc.ServicerContext
    ):
        for _ in request_iterator:
            pass
        return adapters.LoadAdapterResponse()

    def UnloadAdapter(self, request: adapters.UnloadAdapterRequest, context: grpc.ServicerContext):
        self.state.changes.append(request)
        return adapters.UnloadAdapterResponse(adapter=self._take(request.name, context, remove=True))

    def RollbackAdapter(self, request: adapters.RollbackAdapterRequest, context: grpc.ServicerContext):
        self.state.changes.append(request)
        adapter = self._take(request.name, context, remove=False)
        adapter.previous.add(digest=adapter.digest, source=adapter.source)
        adapter.digest = request.digest or "e" * 64
        return adapters.RollbackAdapterResponse(adapter=adapter)

    def GetAdapter(self, request: adapters.GetAdapterRequest, context: grpc.ServicerContext):
        return self._take(request.name, context, remove=False)

    def ListAdapters(self, request: adapters.ListAdaptersRequest, context: grpc.ServicerContext):
        """One adapter a page, whatever was asked: a client that does not follow pages is found out."""
        names = sorted(self.state.names)
        start = int(request.page_token or 0)
        token = str(start + 1) if start + 1 < len(names) else ""
        listed = [self.state.names[name] for name in names[start : start + 1]]
        return adapters.ListAdaptersResponse(adapters=listed, next_page_token=token)

    def PrefetchAdapter(self, request: adapters.PrefetchAdapterRequest, context: grpc.ServicerContext):
        self._take(request.adapter, context, remove=False)
        return adapters.PrefetchAdapterResponse()

    def WatchAdapters(
        self, request: adapters.WatchAdaptersRequest, context: grpc.ServicerContext
    ) -> Iterator:
        """The present states, then an end, so that a test's watch ends as well."""
        for name in sorted(self.state.names):
            if request.name in ("", name):
                yield adapters.AdapterEvent(adapter=self.state.names[name])

    def _take(self, name: str, context: grpc.ServicerContext, *, remove: bool) -> adapters.Adapter:
        if name not in self.state.names:
            fail(context, not_found("ADAPTER_NOT_FOUND", f"no adapter {name!r}"))
        return self.state.names.pop(name) if remove else self.state.names[name]


@contextlib.contextmanager
def fake_server() -> Iterator[FakeServer]:
    """Serves on a free port of loopback until the block ends."""
    state = FakeServer()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(_Generation(state), server)
    adapters_pb2_grpc.add_AdapterServiceServicer_to_server(_Adapters(state), server)
    state.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield state
    finally:
        state.cancelled.set()
        server.stop(grace=None).wait()
