"""One frontend's stream, from Hello to its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from executor.control.mailbox import Abort, Command, Finish, Hint, Mailbox, Submit
from executor.control.outputs import Failed, only_events
from executor.control.request import Code, RequestKey
from executor.service.commands import RequestLimits, decode_submit
from executor.service.encoding import encode, ended
from executor.service.outbox import Outbox, OutboxFullError
from lorikeet.v1 import executor_pb2 as pb
from rpc.digests import is_digest
from rpc.errors import LorikeetError, invalid_argument, resource_exhausted, unavailable


class Session:
    """Commands up, steps down. Whatever ends one direction ends the other; `Sessions` then aborts the
    requests.
    """

    def __init__(
        self, *, client: int, mailbox: Mailbox, outbox: Outbox, limits: RequestLimits, draining: asyncio.Event
    ) -> None:
        self._client = client
        self._mailbox = mailbox
        self._outbox = outbox
        self._limits = limits
        self._draining = draining
        self._live: set[int] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._highest = 0

    async def serve(
        self,
        messages: AsyncIterator[pb.ConnectRequest],
        write: Callable[[pb.ConnectResponse], Awaitable[None]],
    ) -> None:
        """Returns when the frontend closes the stream. Raises LorikeetError to cut it."""
        tasks = [
            asyncio.create_task(part)
            for part in (self._read(messages), self._write(write), self._overflow(), self._drained())
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, messages: AsyncIterator[pb.ConnectRequest]) -> None:
        async for message in messages:
            if message.WhichOneof("message") != "commands":
                raise invalid_argument("BAD_MESSAGE", "after the Hello a stream carries commands only")
            self._apply(message.commands)

    async def _write(self, write: Callable[[pb.ConnectResponse], Awaitable[None]]) -> None:
        try:
            while True:
                share = await self._outbox.take()
                response = encode(share)
                if response is not None:
                    await write(response)
                self._forget(ended(share))
        except OutboxFullError:
            raise _too_slow() from None

    async def _overflow(self) -> None:
        await self._outbox.overflow()
        raise _too_slow()

    async def _drained(self) -> None:
        await self._draining.wait()
        await self._idle.wait()
        raise unavailable("DRAINING", "the executor is shutting down: connect again")

    def _apply(self, message: pb.ClientCommands) -> None:
        commands: list[Command] = []
        for submit in message.submits:
            self._submit(submit, commands)
        commands += [Finish(RequestKey(self._client, index)) for index in self._forget(message.finishes)]
        commands += [Abort(RequestKey(self._client, index)) for index in self._forget(message.aborts)]
        for digest in message.prefetch_digests:
            if not is_digest(digest):
                raise invalid_argument("BAD_DIGEST", "prefetch_digests must be 64 lower-case hex digits each")
            commands.append(Hint(digest))
        if commands and not self._mailbox.post(commands):
            raise resource_exhausted(
                "COMMANDS_FULL",
                "commands arrive faster than the engine takes them: connect again and resubmit",
            )

    def _submit(self, submit: pb.Submit, commands: list[Command]) -> None:
        if submit.request <= self._highest:
            raise invalid_argument(
                "REQUEST_NUMBER",
                f"request {submit.request} comes after {self._highest}: numbers must increase",
            )
        self._highest = submit.request
        request = decode_submit(submit, self._client, self._limits)
        if isinstance(request, Failed):
            self._refuse(request)
        elif self._draining.is_set():
            self._refuse(
                Failed(
                    key=request.key,
                    code=Code.UNAVAILABLE,
                    reason="DRAINING",
                    message="the executor is shutting down: send the request again",
                )
            )
        else:
            commands.append(Submit(request))
            self._live.add(submit.request)
            self._idle.clear()

    def _refuse(self, failed: Failed) -> None:
        self._outbox.put(only_events((failed,)))
        self._outbox.wake()

    def _forget(self, indexes: Iterable[int]) -> list[int]:
        """Those of the requests that were live until now."""
        known: list[int] = []
        for index in indexes:
            if index in self._live:
                self._live.remove(index)
                known.append(index)
        if not self._live:
            self._idle.set()
        return known


def _too_slow() -> LorikeetError:
    return resource_exhausted(
        "OUTBOX_FULL", "the frontend reads more slowly than the engine writes: connect again and resubmit"
    )
