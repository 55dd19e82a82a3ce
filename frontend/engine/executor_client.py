"""The connection to the executor: one stream, kept up as long as the process lives."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import grpc

from frontend.engine.flights import RETRY_SECONDS, Flight, FlightTable, Sink
from frontend.engine.hints import Hints
from frontend.model_folder import ModelFolder
from frontend.reconnect import Backoff, closed, why_ended
from lorikeet.v1 import executor_pb2, executor_pb2_grpc
from rpc.errors import LorikeetError, aborted, failed_precondition, unavailable
from rpc.versions import PROTOCOL_VERSION

log = logging.getLogger(__name__)


_HELLO_SECONDS = 10.0

Stream = grpc.aio.StreamStreamCall[executor_pb2.ConnectRequest, executor_pb2.ConnectResponse]


class ExecutorClient:
    """Submits completions and hands their tokens out; rides over an executor that goes away and comes back.

    While there is no connection, requests wait; after `patience_seconds` of that they fail with UNAVAILABLE,
    and new ones are refused until there is one again.

    Args:
        stub: of the executor.
        incarnation: differs for each start of this process.
        model: what the executor serves must not differ from it in what a folder without weights tells.
        flights: owned by this client from now on.
        patience_seconds: how long an outage may last before requests fail.
        on_availability: called in the event loop when that changes.
    """

    def __init__(
        self,
        *,
        stub: executor_pb2_grpc.ExecutorServiceStub,
        incarnation: str,
        model: ModelFolder,
        flights: FlightTable,
        patience_seconds: float,
        on_availability: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._stub = stub
        self._model = model
        self._hello = executor_pb2.ClientHello(
            protocol_version=PROTOCOL_VERSION,
            incarnation=incarnation,
            tokenizer_digest=model.tokenizer_digest,
        )
        self._flights = flights
        self._patience_seconds = patience_seconds
        self._on_availability = on_availability
        self._hints = Hints()
        self._commands_wait = asyncio.Event()
        self._engine: executor_pb2.EngineHello | None = None
        self._refusal: LorikeetError | None = _not_connected()
        self._outage_timer: asyncio.TimerHandle | None = None
        self._progress = False
        self._logged = ""

    @property
    def engine(self) -> executor_pb2.EngineHello:
        """What the executor said of itself last. Raises UNAVAILABLE before the first connection."""
        if self._engine is None:
            raise _fresh(self._refusal or _not_connected())
        return self._engine

    def submit(
        self, submits: list[executor_pb2.Submit], *, deadline: float | None, sinks: list[Sink]
    ) -> list[Flight]:
        """Starts all completions of a request, or none. `deadline` is a time of `time.monotonic`.

        Raises RESOURCE_EXHAUSTED when there are too many already, UNAVAILABLE when the executor has been away
        for too long.
        """
        if self._refusal is not None:
            raise _fresh(self._refusal)
        self._flights.check_room(len(submits))
        flights = [
            self._flights.submit(submit, deadline=deadline, sink=sink)
            for submit, sink in zip(submits, sinks, strict=True)
        ]
        self._commands_wait.set()
        return flights

    def hint(self, digest: str) -> bool:
        """An adapter will be asked for soon: the executor may begin to bring it. Never fails.

        Returns whether it is to be told, and was not told only just; with a connection that breaks before it
        is, it is lost.
        """
        is_told = self._refusal is None and self._hints.add(digest, time.monotonic())
        if is_told:
            self._commands_wait.set()
        return is_told

    def abort(self, flight: Flight) -> None:
        """Nobody waits for it any more. Does nothing for a flight that is over."""
        self._flights.abort(flight)
        if self._flights.has_commands:
            self._commands_wait.set()

    async def run(self) -> None:
        """Connects and reconnects until cancelled."""
        self._begin_outage()
        backoff = Backoff()
        try:
            while True:
                error = await self._connection()
                self._log_once(error)
                self._begin_outage()
                if error.code is grpc.StatusCode.FAILED_PRECONDITION:
                    self._refuse(error)
                self._flights.connection_lost()
                self._hints.connection_lost()
                if self._progress:
                    backoff.reset()
                await backoff.wait()
        finally:
            if self._outage_timer is not None:
                self._outage_timer.cancel()
            self._flights.fail_all(
                unavailable("SHUTTING_DOWN", "the frontend is shutting down: retry elsewhere")
            )

    async def _connection(self) -> LorikeetError:
        """One connection from Hello to its end; returns why it ended."""
        self._progress = False
        call: Stream = self._stub.Connect()
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                await call.write(executor_pb2.ConnectRequest(hello=self._hello))
                first = await call.read()
            if not isinstance(first, executor_pb2.ConnectResponse):
                return closed("the executor")
            self._greet(first)
            writer = asyncio.create_task(self._write_commands(call))
            receive, flights = call.read, self._flights
            while isinstance(response := await receive(), executor_pb2.ConnectResponse):
                flights.receive(response.step)
                self._progress = True
                if flights.has_commands:
                    self._commands_wait.set()
            return closed("the executor")
        except BaseException as error:
            return why_ended(error, "the executor")
        finally:
            if writer is not None:
                writer.cancel()
            call.cancel()

    async def _write_commands(self, call: Stream) -> None:
        """Sends what gathered since the last message: a tick's commands travel together."""
        try:
            while True:
                commands = self._flights.next_commands(time.monotonic())
                hints = self._hints.take()
                if hints:
                    commands = commands or executor_pb2.ClientCommands()
                    commands.prefetch_digests.extend(hints)
                if commands is None:
                    self._commands_wait.clear()
                    await self._commands_wait.wait()
                else:
                    await call.write(executor_pb2.ConnectRequest(commands=commands))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream has ended, and the reader knows why
        except Exception:
            # Without a writer the stream is of no use; the reader sees it end and connects anew.
            log.exception("the stream to the executor could not be written to")
            call.cancel()

    def _log_once(self, error: LorikeetError) -> None:
        if str(error) != self._logged:
            log.warning("no connection to the executor: %s", error)
            self._logged = str(error)

    def _greet(self, response: executor_pb2.ConnectResponse) -> None:
        """Checks the executor's Hello and ends the outage. FAILED_PRECONDITION if it does not fit."""
        hello = response.hello
        for what, theirs, ours in (
            ("protocol version", hello.protocol_version, PROTOCOL_VERSION),
            ("tokenizer", hello.tokenizer_digest, self._model.tokenizer_digest),
            ("model type", hello.model_type, self._model.model_type),
            ("vocabulary size", hello.limits.vocab_size, self._model.vocab_size),
        ):
            if theirs != ours:
                raise failed_precondition(
                    "EXECUTOR_MISMATCH",
                    f"the executor's {what} is {theirs}, this frontend's {ours}: "
                    "give both the same release and model folder",
                )
        if self._engine is not None and self._engine.base_digest != hello.base_digest:
            self._flights.fail_all(
                aborted(
                    "MODEL_CHANGED", "the executor came back with another base model: send the request again"
                )
            )
        self._engine = hello
        if self._outage_timer is not None:
            self._outage_timer.cancel()
            self._outage_timer = None
        self._refusal = None
        self._logged = ""
        log.info("connected to the executor of %s, incarnation %s", hello.model_name, hello.incarnation)
        self._on_availability(True)

    def _begin_outage(self) -> None:
        if self._outage_timer is None:
            loop = asyncio.get_running_loop()
            self._outage_timer = loop.call_later(self._patience_seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        if self._refusal is None:
            self._refuse(unavailable("EXECUTOR_AWAY", "the executor is away: retry later"))

    def _refuse(self, error: LorikeetError) -> None:
        """Fails what waits, and everything new until the executor is back."""
        self._refusal = unavailable(error.reason, error.message, retry_after=RETRY_SECONDS)
        self._flights.fail_all(self._refusal)
        self._on_availability(False)


def _not_connected() -> LorikeetError:
    return unavailable(
        "EXECUTOR_NOT_CONNECTED", "the executor is not connected yet: retry", retry_after=RETRY_SECONDS
    )


def _fresh(error: LorikeetError) -> LorikeetError:
    # One that was raised before would drag its tracebacks along.
    return replace(error)
