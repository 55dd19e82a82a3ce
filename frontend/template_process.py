"""Templates that adapters bring, rendered in processes of their own.

Jinja's sandbox keeps a template from what it must not see, not from working for ever or filling the memory.
In the frontend's process either would end every stream; whoever loads an adapter is not trusted that far.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from frontend.template_child import LENGTH, costly
from rpc.errors import LorikeetError, resource_exhausted, unavailable

log = logging.getLogger(__name__)

_PROCESSES = 2
_MAX_WAITING, _MAX_WAITING_BYTES = 1024, 64 << 20
_MAX_ANSWER_BYTES = 64 << 20

Answer = dict[str, Any]


class AdapterTemplate:
    """One adapter's template. Its chats take turns, so that a slow one holds up no more than one process."""

    def __init__(self, source: str, processes: "TemplateProcesses") -> None:
        self._source = source
        self._processes = processes
        self._turn = asyncio.Lock()

    async def check(self) -> None:
        """Raises ValueError when the source is no template; LorikeetError as `render` does."""
        answer = await self._processes.ask(self._turn, {"source": self._source})
        if "broken" in answer:
            raise ValueError(answer["broken"])

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """Renders a chat.

        Raises LorikeetError: what `ChatTemplate.render` does, FAILED_PRECONDITION when it takes too much time
        or memory, RESOURCE_EXHAUSTED when too many chats wait, UNAVAILABLE without a process.
        """
        request = {
            "source": self._source,
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "variables": dict(variables),
        }
        answer = await self._processes.ask(self._turn, request)
        if "code" in answer:
            raise LorikeetError(grpc.StatusCode[answer["code"]], answer["reason"], answer["message"])
        return answer["text"]


class TemplateProcesses:
    """A few processes that render one chat at a time each, started when they are first needed.

    Args:
        special_tokens: variables that templates see, from the base's tokenizer.
        max_bytes: of a rendered chat.
    """

    def __init__(self, *, special_tokens: Mapping[str, str], max_bytes: int) -> None:
        self._settings = json.dumps({"special_tokens": dict(special_tokens), "max_bytes": max_bytes})
        self._idle: list[asyncio.subprocess.Process] = []
        self._all: set[asyncio.subprocess.Process] = set()
        self._free = asyncio.Semaphore(_PROCESSES)
        # Those whose callers have left count too: what a process has begun it ends.
        self._asking: set[asyncio.Task[Answer]] = set()
        self._waiting_bytes = 0

    def template(self, source: str) -> AdapterTemplate:
        return AdapterTemplate(source, self)

    async def ask(self, turn: asyncio.Lock, request: Answer) -> Answer:
        """What a process answers, once it is the request's turn. Raises LorikeetError."""
        text = json.dumps(request).encode()
        if len(self._asking) >= _MAX_WAITING or self._waiting_bytes + len(text) > _MAX_WAITING_BYTES:
            raise resource_exhausted(
                "TEXT_QUEUE_FULL",
                "too many chats wait for their adapter's own template: retry shortly",
                retry_after=0.5,
            )
        task = asyncio.create_task(self._ask(turn, text))
        self._asking.add(task)
        self._waiting_bytes += len(text)
        task.add_done_callback(lambda task: self._asked(task, len(text)))
        return await asyncio.shield(task)

    def statistics(self) -> dict[str, int]:
        return {"templates_waiting": len(self._asking)}

    async def close(self) -> None:
        """Ends the processes, and what waits for them."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        for process in list(self._all):
            await self._end(process)

    async def _ask(self, turn: asyncio.Lock, text: bytes) -> Answer:
        async with turn, self._free:
            while True:
                is_new = not self._idle
                process = await self._start() if is_new else self._idle.pop()
                try:
                    answer = await _exchange(process, text)
                except (OSError, EOFError, ValueError) as error:
                    code = await self._end(process)
                    # One that was used before may have ended for a reason of its own.
                    if is_new or code == -signal.SIGPROF:
                        raise costly() from error
                else:
                    self._idle.append(process)
                    return answer

    def _asked(self, task: asyncio.Task[Answer], size: int) -> None:
        self._asking.discard(task)
        self._waiting_bytes -= size
        if not task.cancelled():
            task.exception()  # seen, in case nobody waits for it any more

    async def _start(self) -> asyncio.subprocess.Process:
        command = (sys.executable, "-P", "-m", "frontend.template_child", self._settings)
        pipe = asyncio.subprocess.PIPE
        path = os.pathsep.join(each for each in sys.path if each)
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": path}
            )
        except OSError as error:
            log.exception("no process for templates can be started")
            raise unavailable(
                "NO_TEMPLATE_PROCESS", f"the frontend cannot start a process for templates: {error.strerror}"
            ) from error
        self._all.add(process)
        return process

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        self._all.discard(process)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


async def _exchange(process: asyncio.subprocess.Process, text: bytes) -> Answer:
    """Raises OSError or EOFError when the process ends, ValueError when it answers nonsense."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(struct.pack(LENGTH, len(text)) + text)
    await process.stdin.drain()
    (size,) = struct.unpack(LENGTH, await process.stdout.readexactly(struct.calcsize(LENGTH)))
    if size > _MAX_ANSWER_BYTES:
        raise ValueError(f"an answer of {size} bytes")
    answer = json.loads(await process.stdout.readexactly(size))
    if not isinstance(answer, dict):
        raise ValueError("an answer that is no object")
    return answer
