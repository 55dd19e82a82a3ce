"""Sending planned requests and noting when what came back."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import grpc

from cli.benchmark.workload import Planned
from cli.client import Client
from lorikeet.v1 import generation_pb2 as pb
from rpc.errors import from_rpc


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One request as its client saw it; times in seconds.

    Args:
        adapter: asked for; empty for the base.
        begun: when it arrived, from the start of the run. With a rate that is when it was due: what it waited
            for a free place among the client's requests in flight counts as the server's delay.
        messages: when each message with tokens came, from the start of the run.
        tokens: generated.
        prompt_tokens, cached_tokens, adapter_wait: as the server says.
        error: code and reason; empty for one that was answered.
    """

    adapter: str
    begun: float
    messages: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    adapter_wait: float = 0.0
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.messages[0] - self.begun

    @property
    def e2e(self) -> float:
        return self.messages[-1] - self.begun

    @property
    def tpot(self) -> float | None:
        """The mean time of a token after the first; None where there was but one."""
        return (self.messages[-1] - self.messages[0]) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Between messages: what a reader sees."""
        return [later - earlier for earlier, later in zip(self.messages, self.messages[1:], strict=False)]


async def send(
    client: Client, planned: Sequence[Planned], *, concurrency: int, on_end: Callable[[], None]
) -> list[Outcome]:
    """All requests, at most `concurrency` at once; a failed one is an outcome too."""
    start = time.perf_counter()
    waiting = iter(planned)
    outcomes: list[Outcome] = []

    async def worker(requests: Iterator[Planned]) -> None:
        for at, request in requests:
            due = at - (time.perf_counter() - start)
            if due > 0:
                await asyncio.sleep(due)
            outcome = Outcome(adapter=request.adapter, begun=at or time.perf_counter() - start)
            outcomes.append(outcome)
            await _send(client, request, outcome, start)
            on_end()

    await asyncio.gather(*(worker(waiting) for _ in range(min(concurrency, len(planned)))))
    return outcomes


async def _send(client: Client, request: pb.GenerateRequest, outcome: Outcome, start: float) -> None:
    call = client.generation.Generate(request, timeout=client.connection.deadline)
    try:
        async for response in call:
            if response.token_ids:
                outcome.messages.append(time.perf_counter() - start)
                outcome.tokens += len(response.token_ids)
            if response.HasField("summary"):
                outcome.prompt_tokens = response.summary.usage.prompt_tokens
                outcome.cached_tokens = response.summary.usage.cached_tokens
                outcome.adapter_wait = response.summary.timings.adapter_wait_us / 1e6
        if not outcome.messages:
            outcome.error = "OK without tokens"
    except grpc.RpcError as rpc_error:
        error = from_rpc(rpc_error)
        outcome.error = f"{error.code.name} {error.reason}"
    finally:
        call.cancel()
