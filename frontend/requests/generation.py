"""What GenerationService does: a request's way from its arrival to its last message."""

import importlib.metadata
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import grpc

from frontend.adapters.adapter_templates import AdapterTemplates
from frontend.adapters.catalog import Catalog
from frontend.adapters.resolving import Resolver
from frontend.engine.executor_client import ExecutorClient
from frontend.engine.flights import Alternatives, Sink
from frontend.model_folder import ModelFolder
from frontend.requests.completion import Completion
from frontend.requests.prompts import PromptReader
from frontend.requests.request_stream import Identity, RequestStream
from frontend.requests.running import RunningRequests
from frontend.requests.validation import GeneratePlan, fit_to_context, plan_generation
from frontend.requests.wakeups import Wakeups
from frontend.sampling import completion_seed
from frontend.text.stop_strings import StopMatcher, StopStrings
from frontend.usage import UsageTable
from lorikeet.v1 import executor_pb2, generation_pb2
from rpc.access import check_tenant, current_caller
from rpc.errors import LorikeetError, aborted
from rpc.tokens import Caller

log = logging.getLogger(__name__)

Write: TypeAlias = Callable[[generation_pb2.GenerateResponse], Awaitable[None]]


class CompletionSink:
    """What the executor's side calls for one completion of a request."""

    __slots__ = ("_index", "_stream")

    def __init__(self, stream: RequestStream, index: int) -> None:
        self._stream = stream
        self._index = index

    def on_admitted(self, admitted: executor_pb2.Admitted, submitted: float) -> None:
        self._stream.on_admitted(admitted, submitted)

    def on_tokens(
        self,
        token_ids: Sequence[int],
        finish: int,
        logprobs: Sequence[float] | None,
        alternatives: Mapping[int, Alternatives] | None,
    ) -> bool:
        return self._stream.on_tokens(self._index, token_ids, finish, logprobs, alternatives)

    def on_prompt_logprobs(self, chunk: executor_pb2.PromptLogprobs) -> None:
        self._stream.on_prompt_logprobs(chunk)

    def on_failed(self, error: LorikeetError) -> None:
        self._stream.on_failed(error)


class Generation:
    """Answers generation requests with one executor and what is known of adapters.

    Args:
        model: the base model's folder, read.
        prompts: renders and tokenises.
        templates: which template an adapter's chats are rendered with.
        executor: where completions are computed.
        catalog: which digest a name points to.
        resolver: brings names that it lacks, where the store can.
        usage: counts each request when it ends.
        wakeups: decides when streams with news go on.
    """

    def __init__(
        self,
        *,
        model: ModelFolder,
        prompts: PromptReader,
        templates: AdapterTemplates,
        executor: ExecutorClient,
        catalog: Catalog,
        resolver: Resolver,
        usage: UsageTable,
        wakeups: Wakeups,
    ) -> None:
        self._model = model
        self._codec = model.codec
        self._prompts = prompts
        self._templates = templates
        self._executor = executor
        self._catalog = catalog
        self._resolver = resolver
        self._usage = usage
        self._wakeups = wakeups
        self._running = RunningRequests(executor.abort)
        catalog.on_abort(self._running.unload)

    async def generate(
        self, request: generation_pb2.GenerateRequest, write: Write, *, remaining_seconds: float | None
    ) -> None:
        """Writes the responses of one Generate call; returns after the last. Raises LorikeetError.

        However it is left, also by cancellation, the executor works for this request no longer.
        """
        # Not the loop's clock: uvloop's stands still during a turn of the loop.
        arrived = time.monotonic()
        deadline = None if remaining_seconds is None else arrived + remaining_seconds
        engine = self._executor.engine
        plan = plan_generation(request, limits=engine.limits, defaults=self._model.defaults)
        caller = current_caller()
        check_tenant(request.tenant, caller)
        await self._resolver.prepare(plan.adapter, remaining_seconds)
        digest = self._catalog.resolve(plan.adapter, caller)
        if request.WhichOneof("prompt") != "tokens":  # else the request itself follows at once
            self._executor.hint(digest)
        prompt_ids, digest = await self._read_prompt(request, plan, digest, caller)
        fit_to_context(plan.sampling, prompt_ids, engine.limits)
        log.debug(
            "request %s: %d prompt tokens for %s",
            plan.request_id,
            len(prompt_ids),
            digest or "the base model",
        )
        stream = self._open_stream(plan, prompt_ids, digest, engine.model_name, arrived)
        try:
            try:
                await self._run(stream, plan, prompt_ids, digest, deadline, write)
            except LorikeetError as error:
                if not (plan.adapter.name and error.code is grpc.StatusCode.NOT_FOUND):
                    raise
                # The name may have moved while the request was on its way: once more.
                current = self._catalog.resolve(plan.adapter, caller)
                if current == digest:
                    raise
                prompt_ids, digest = await self._read_prompt(request, plan, current, caller, prompt_ids)
                stream = self._open_stream(plan, prompt_ids, digest, engine.model_name, arrived)
                await self._run(stream, plan, prompt_ids, digest, deadline, write)
        finally:
            self._usage.count(digest, stream.usage, first_token_seconds=stream.first_token_seconds)

    async def _read_prompt(
        self,
        request: generation_pb2.GenerateRequest,
        plan: GeneratePlan,
        digest: str,
        caller: Caller,
        prompt_ids: Sequence[int] | None = None,
    ) -> tuple[Sequence[int], str]:
        """The prompt as the version that will answer wants it, and that version's digest.

        Args:
            digest: what the adapter means now.
            prompt_ids: of an earlier version; enough where a chat's template does not matter.
        """
        is_chat = request.WhichOneof("prompt") == "chat"
        while prompt_ids is None or is_chat:
            before = digest
            try:
                template = await self._templates.of(digest) if is_chat else None
                limit = self._executor.engine.limits.context_length
                prompt_ids = await self._prompts.read(request, template, limit)
            except LorikeetError as error:
                digest = self._catalog.resolve(plan.adapter, caller)
                if digest == before or error.code is not grpc.StatusCode.NOT_FOUND:
                    raise
                # The version went, with its template, while that was fetched.
                continue
            # The name may have moved, or gone, while the prompt was read.
            digest = self._catalog.resolve(plan.adapter, caller)
            if not is_chat or before == digest or await self._templates.of(digest) is template:
                break
        return prompt_ids, digest

    async def _run(
        self,
        stream: RequestStream,
        plan: GeneratePlan,
        prompt_ids: Sequence[int],
        digest: str,
        deadline: float | None,
        write: Write,
    ) -> None:
        submits = [_submit_of(plan, prompt_ids, digest, index) for index in range(plan.completions)]
        sinks: list[Sink] = [CompletionSink(stream, index) for index in range(plan.completions)]
        flights = self._executor.submit(submits, deadline=deadline, sinks=sinks)
        wait, take = stream.wait, stream.take
        try:
            with self._running.track(plan.adapter, stream, flights):
                while not stream.done:
                    await wait()
                    for response in take():
                        await write(response)
        except LorikeetError as error:
            if stream.begun and plan.adapter.name and error.code is grpc.StatusCode.NOT_FOUND:
                raise aborted(
                    "ADAPTER_REPLACED",
                    f'the version of "{plan.adapter.name}" that answered so far is gone: send it again',
                ) from error
            raise

    def _open_stream(
        self, plan: GeneratePlan, prompt_ids: Sequence[int], digest: str, model: str, arrived: float
    ) -> RequestStream:
        stop = StopStrings(plan.stop) if plan.stop else None
        stop_token_ids = frozenset(plan.sampling.stop_token_ids)
        completions = [
            Completion(
                index=index,
                detokenizer=self._codec.detokenizer(
                    skip_special_tokens=not plan.include_special_tokens, prompt_ids=prompt_ids
                ),
                matcher=StopMatcher(stop) if stop is not None else None,
                stop_token_ids=stop_token_ids,
                include_special_tokens=plan.include_special_tokens,
                describe_token=lambda token_id: self._codec.decode([token_id], skip_special_tokens=False),
            )
            for index in range(plan.completions)
        ]
        return RequestStream(
            identity=Identity(
                request_id=plan.request_id,
                model=model,
                adapter=f"b3:{plan.adapter.digest}" if plan.adapter.digest else plan.adapter.name,
                digest=digest,
                arrived=arrived,
            ),
            completions=completions,
            prompt_ids=prompt_ids,
            wants_prompt_logprobs=plan.sampling.HasField("prompt_logprobs"),
            wakeups=self._wakeups,
            clock=time.monotonic,
        )

    def describe_model(self) -> generation_pb2.GetModelResponse:
        """The base model and its limits. Raises UNAVAILABLE before an executor has been reached."""
        engine = self._executor.engine
        return generation_pb2.GetModelResponse(
            name=engine.model_name,
            model_type=engine.model_type,
            base_digest=engine.base_digest,
            vocab_size=engine.limits.vocab_size,
            context_length=engine.limits.context_length,
            eos_token_ids=engine.eos_token_ids,
            has_chat_template=self._model.template is not None,
            default_sampling=self._model.defaults.to_proto(),
            adapter_slots=engine.limits.adapter_slots,
            max_lora_rank=engine.limits.max_lora_rank,
            version=importlib.metadata.version("lorikeet"),
        )


def _submit_of(plan: GeneratePlan, prompt_ids: Sequence[int], digest: str, index: int) -> executor_pb2.Submit:
    submit = executor_pb2.Submit(
        prompt_ids=prompt_ids, adapter_digest=digest, cache_salt=plan.cache_salt, sampling=plan.sampling
    )
    submit.sampling.seed = completion_seed(plan.sampling.seed, index)
    if index:
        # The prompt is the same for all: once is enough.
        submit.sampling.ClearField("prompt_logprobs")
    return submit
