"""Generate calls as commands make them: building requests, streaming answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from cli.client import Client
from cli.errors import usage_error
from lorikeet.v1 import generation_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters as they were given; None leaves one to the server."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool | None = None

    def encode(self) -> pb.SamplingParams:
        params = pb.SamplingParams()
        fill(params, **{field.name: getattr(self, field.name) for field in fields(self)})
        return params


def fill(message: "Message", **given: Any) -> None:
    """Sets fields that have their flags' names; None leaves one as it is. Raises CliError for a number that a
    field cannot hold.
    """
    for name, value in given.items():
        if value is None:
            continue
        try:
            setattr(message, name, value)
        except UnicodeError:
            raise
        except ValueError as error:
            raise usage_error(f"--{name.replace('_', '-')} {value}: that is too much") from error


def chat_prompt(messages: Sequence[tuple[str, str]]) -> pb.ChatPrompt:
    """A prompt from (role, content) pairs."""
    return pb.ChatPrompt(messages=[pb.ChatMessage(role=role, content=content) for role, content in messages])


async def stream(
    client: Client, request: pb.GenerateRequest, on_response: Callable[[pb.GenerateResponse], None]
) -> pb.Summary:
    """Runs one Generate call, handing on each response as it comes. Raises grpc.RpcError."""
    summary = pb.Summary()
    call = client.generation.Generate(request, timeout=client.connection.deadline)
    try:
        async for response in call:
            on_response(response)
            if response.HasField("summary"):
                summary = response.summary
    finally:
        # Interrupted or failed half-way: the server is told now, not when the channel goes.
        call.cancel()
    return summary


def describe(summary: pb.Summary) -> str:
    """Usage and timings on one line for people."""
    usage, timings = summary.usage, summary.timings
    who = summary.adapter or "base"
    prompt = f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached)"
    first, total = timings.first_token_us / 1e3, timings.total_us / 1e3
    times = f"first token after {first:.0f} ms, all after {total:.0f} ms"
    return f"{who}: {prompt}, {usage.completion_tokens} generated; {times}"
