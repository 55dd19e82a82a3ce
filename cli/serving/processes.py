"""Child processes that are to be running: started, watched, restarted, stopped in order."""

import asyncio
import collections
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.errors import EXIT_USAGE, CliError
from cli.serving.child_progress import parse_progress
from cli.serving.restarts import RestartPolicy, advice, ending
from rpc.channel import open_channel

_POLL_SECONDS = 0.05
_CHECK_SECONDS = 2.0
_TAIL_LINES = 20
_LINE_BYTES = 1 << 20
_LEFT_SECONDS = 1.0
"""Most that what a process leaves behind has to end by itself."""


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """One process to keep running.

    Args:
        name: for people.
        command: program and arguments.
        environment: variables on top of our own.
        address: where its health service answers.
        stop_seconds: between asking it to stop and killing it.
        after: name of one that is to be ready before this one is first started.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    address: str
    stop_seconds: float
    after: str = ""


class Listener(Protocol):
    """Who is told what happens to the children."""

    def notify(self, text: str) -> None:
        """A death or a restart, in words."""

    def line(self, name: str, text: str) -> None:
        """A line that a child wrote."""

    def progress(self, name: str, done: int, total: int) -> None:
        """How far a child is with getting ready."""


class Child:
    """One process at a time, with the last lines that it wrote."""

    def __init__(self, spec: ChildSpec, listener: Listener) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._listener = listener
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the process. It sees the end of its stdin when this process goes, however it goes."""
        self.tail.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self.spec.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.spec.environment},
            limit=_LINE_BYTES,
            # A Ctrl-C in the terminal is for us, who stop the children in their order.
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read())

    async def exited(self) -> int:
        """Waits for the end of the process; what it leaves behind is killed soon after.

        Returns its exit code, negative for a signal.
        """
        assert self._process is not None
        assert self._reader is not None
        # `wait` may end only with the pipes, which what the process has started may hold open.
        closed = asyncio.create_task(self._process.wait())
        try:
            is_running = True
            while is_running:
                await asyncio.wait({closed, self._reader}, timeout=_LEFT_SECONDS)
                is_running = self.running
            if not self._reader.done():
                self._kill_group()
                await asyncio.wait({self._reader}, timeout=_LEFT_SECONDS)
        finally:
            closed.cancel()
        if self._reader.done() and not self._reader.cancelled():
            self._reader.result()
        assert self._process.returncode is not None
        return self._process.returncode

    async def become_ready(self) -> bool:
        """Waits until the health service says SERVING; False when the process ends before."""
        async with open_channel(self.spec.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while self.running:
                with contextlib.suppress(grpc.RpcError):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CHECK_SECONDS)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return True
                await asyncio.sleep(_POLL_SECONDS)
        return False

    def mark_ready(self) -> None:
        """The listener gets its lines from here on, those of the start first; a failed start shows none."""
        self.ready.set()
        for line in self.tail:
            self._listener.line(self.spec.name, line)

    async def stop(self) -> bool:
        """SIGTERM, then SIGKILL when the time is up. Returns False if it had to be killed."""
        if self._process is None:
            return True
        if self.running:
            self._process.terminate()
        try:
            await asyncio.wait_for(self.exited(), self.spec.stop_seconds)
        except TimeoutError:
            self.kill()
            await self.exited()
            return False
        return True

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        if self.running:
            self._kill_group()

    def _kill_group(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # A line beyond the limit; the rest of it comes as the next ones.
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if progress := parse_progress(text):
                self._listener.progress(self.spec.name, *progress)
            else:
                self.tail.append(text)
                if self.ready.is_set():
                    self._listener.line(self.spec.name, text)


class Supervisor:
    """Keeps children running until told to stop; the order of the specs is the order of their start.

    Args:
        specs: what to run.
        listener: told about deaths, restarts, output and progress.
    """

    def __init__(self, specs: Sequence[ChildSpec], listener: Listener) -> None:
        self.children = {spec.name: Child(spec, listener) for spec in specs}
        self._notify = listener.notify
        self._keepers: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Starts all and keeps them running. Returns only by raising CliError, when one is given up."""
        self._keepers = [asyncio.create_task(self._keep(child)) for child in self.children.values()]
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_EXCEPTION)
        for keeper in done:
            keeper.result()

    async def wait_ready(self, name: str) -> None:
        await self.children[name].ready.wait()

    async def stop(self) -> None:
        """Stops the last started first, each with its own time to drain."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for child in reversed(self.children.values()):
            if not child.ready.is_set():
                # It serves nobody yet, and while it imports or loads it may not hear us for long.
                child.kill()
            if not await child.stop():
                self._notify(f"{child.spec.name} did not stop within {child.spec.stop_seconds:g} s: killed")

    def kill(self) -> None:
        """No draining: the user asked twice."""
        for child in self.children.values():
            child.kill()

    async def _keep(self, child: Child) -> None:
        policy = RestartPolicy()
        name = child.spec.name
        died: float | None = None
        if child.spec.after:
            await self.wait_ready(child.spec.after)
        while True:
            await child.start()
            ready_at: float | None = None
            if await child.become_ready():
                ready_at = time.monotonic()
                child.mark_ready()
                if died is not None:
                    self._notify(f"{name} is back after {ready_at - died:.1f} s")
            code = await child.exited()
            died = time.monotonic()
            child.ready.clear()
            lived = None if ready_at is None else died - ready_at
            delay = policy.next_delay(exit_code=code, ready_seconds=lived)
            if delay is None:
                raise _gave_up(child, code, policy)
            why = _why(child) if lived is None else ""
            self._notify(f"{name} {ending(code)}{why}; starting it again in {delay:g} s")
            await asyncio.sleep(delay)


def _why(child: Child) -> str:
    """The last that was heard of a start that failed: it was not shown."""
    return f" before it was ready ({child.tail[-1]})" if child.tail else " before it was ready"


def _gave_up(child: Child, code: int, policy: RestartPolicy) -> CliError:
    times = f", {policy.failures} times in a row," if policy.failures > 1 else ""
    lines = "".join(f"\n  {line}" for line in child.tail) or "\n  (nothing)"
    # Who refused its settings has said what to do.
    hint = "" if code == EXIT_USAGE else f"\n{advice(code)}"
    message = f"{child.spec.name} {ending(code)}{times} and is given up; its last lines:{lines}{hint}"
    return CliError(message, reason="SERVICE_FAILED")
