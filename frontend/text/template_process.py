"""Templates that adapters bring, rendered in processes of their own.

Jinja's sandbox keeps a template from what it must not see, not from working for ever or filling the memory.
In the frontend's process either would end every stream; whoever loads an adapter is not trusted that far.
"""

import asyncio
import json
import logging
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc

from frontend.text.template_child import LENGTH, costly
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
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
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
        for child in list(self._all):
            await self._end(child)

    async def _ask(self, turn: asyncio.Lock, text: bytes) -> Answer:
        async with turn, self._free:
            while True:
                is_new = not self._idle
                child = await self._start() if is_new else self._idle.pop()
                try:
                    answer = await child.exchange(text)
                except (OSError, EOFError, ValueError) as error:
                    code = await self._end(child)
                    # One that was used before may have ended for a reason of its own.
                    if is_new or code == -signal.SIGPROF:
                        raise costly() from error
                else:
                    self._idle.append(child)
                    return answer

    def _asked(self, task: asyncio.Task[Answer], size: int) -> None:
        self._asking.discard(task)
        self._waiting_bytes -= size
        if not task.cancelled():
            task.exception()  # seen, in case nobody waits for it any more

    async def _start(self) -> "_Child":
        try:
            child = await _Child.start(self._settings)
        except OSError as error:
            log.exception("no process for templates can be started")
            raise unavailable(
                "NO_TEMPLATE_PROCESS", f"the frontend cannot start a process for templates: {error.strerror}"
            ) from error
        self._all.add(child)
        return child

    async def _end(self, child: "_Child") -> int:
        self._all.discard(child)
        return await child.end()


@dataclass(frozen=True, eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def start(cls, settings: str) -> Self:
        """Raises OSError."""
        # Not by the loop, which forks: gRPC would stop its threads meanwhile.
        process = await asyncio.to_thread(
            subprocess.Popen,
            (sys.executable, "-P", "-m", "frontend.text.template_child", settings),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), process.stdin
        )
        return cls(process, reader, asyncio.StreamWriter(transport, protocol, None, loop))

    async def exchange(self, text: bytes) -> Answer:
        """Raises OSError or EOFError when the process ends, ValueError when it answers nonsense."""
        self.writer.write(struct.pack(LENGTH, len(text)) + text)
        await self.writer.drain()
        (size,) = struct.unpack(LENGTH, await self.reader.readexactly(struct.calcsize(LENGTH)))
        if size > _MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of {size} bytes")
        answer = json.loads(await self.reader.readexactly(size))
        if not isinstance(answer, dict):
            raise ValueError("an answer that is no object")
        return answer

    async def end(self) -> int:
        """The exit status."""
        self.process.kill()
        self.writer.close()
        return await asyncio.to_thread(self.process.wait)
