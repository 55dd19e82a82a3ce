"""Answers of Generate calls, whole or as they come."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc

from lorikeet.v1 import generation_pb2
from rpc.errors import LorikeetError, from_rpc

ANSWER_SECONDS = 120.0


def question(text: str, adapter: str = "", **sampling: Any) -> generation_pb2.GenerateRequest:
    """One user message, answered greedily."""
    fields = {"temperature": 0.0, "max_tokens": 64, **sampling}
    return generation_pb2.GenerateRequest(
        chat=generation_pb2.ChatPrompt(messages=[generation_pb2.ChatMessage(role="user", content=text)]),
        adapter=adapter,
        sampling=generation_pb2.SamplingParams(**fields),
    )


@dataclass
class Answer:
    """What a Generate call brought, for its first completion."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: int = 0
    digest: str = ""
    summary: generation_pb2.Summary | None = None


def add(answer: Answer, response: generation_pb2.GenerateResponse) -> None:
    """Adds a message of the stream to the answer."""
    answer.text += response.text
    answer.token_ids += response.token_ids
    answer.finish_reason = answer.finish_reason or response.finish_reason
    answer.digest = answer.digest or response.adapter_digest
    if response.HasField("summary"):
        answer.summary = response.summary


class Begun:
    """An answer whose progress can be waited for."""

    def __init__(self, call: Any) -> None:
        self.answer = Answer()
        self.task = asyncio.create_task(self._read(call))
        self._changed = asyncio.Condition()
        self._is_over = False

    async def has(self, tokens: int) -> None:
        """Waits for the first `tokens`, or an end before. Raises what ended it."""
        async with asyncio.timeout(ANSWER_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self._is_over or len(self.answer.token_ids) >= tokens)
        if self._is_over:
            await self.task

    async def error(self) -> LorikeetError:
        """What it ends with."""
        try:
            await asyncio.wait_for(self.task, ANSWER_SECONDS)
        except grpc.aio.AioRpcError as error:
            return from_rpc(error)
        raise AssertionError("the answer ended well")

    async def _read(self, call: Any) -> Answer:
        try:
            async for response in call:
                async with self._changed:
                    add(self.answer, response)
                    self._changed.notify_all()
        finally:
            async with self._changed:
                self._is_over = True
                self._changed.notify_all()
        return self.answer
