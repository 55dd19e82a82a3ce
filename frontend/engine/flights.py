"""Requests that the executor has, or should have: the frontend's half of the executor protocol, without I/O.

submit ─▶ unsent ─▶ sent ─▶ ended (engine) | finished (stop string) | aborted (client gone) | failed
             ▲        │
             └────────┘  the connection was lost: prompt and emitted ids go to the next executor
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from google.rpc import code_pb2

from lorikeet.v1 import executor_pb2
from rpc.errors import LorikeetError, from_code, internal, resource_exhausted, unavailable

log = logging.getLogger(__name__)

Alternatives = tuple[Sequence[int], Sequence[float]]
"""Token ids and their log probabilities."""

RETRY_SECONDS = 1.0
# A request that went down with this many executors in a row, without a token in between, may be the cause.
MAX_FRUITLESS_SUBMISSIONS = 4
# Ids in one message of commands: with at most 5 bytes an id, a tenth of what an executor accepts.
MAX_COMMAND_IDS = 300_000

_CODES_WITH_DELAY = frozenset({code_pb2.RESOURCE_EXHAUSTED, code_pb2.UNAVAILABLE})


class Sink(Protocol):
    """Who is told what happens to a flight; called in the event loop, must not block."""

    def on_admitted(self, admitted: executor_pb2.Admitted, submitted: float) -> None:
        """The first step began; `submitted` is the time at which it was first sent."""
        ...

    def on_tokens(
        self,
        token_ids: Sequence[int],
        finish: int,
        logprobs: Sequence[float] | None,
        alternatives: Mapping[int, Alternatives] | None,
    ) -> bool:
        """Tokens of one step; returns True when they ended the request in a way the engine cannot know."""
        ...

    def on_prompt_logprobs(self, chunk: executor_pb2.PromptLogprobs) -> None: ...

    def on_failed(self, error: LorikeetError) -> None: ...


@dataclass(slots=True, eq=False, kw_only=True)
class Flight:
    """One submitted completion. `submit` lacks what changes: emitted ids and remaining time."""

    request: int
    submit: executor_pb2.Submit
    deadline: float | None
    sink: Sink
    wants_logprobs: bool
    emitted: list[int] = field(default_factory=list)
    submitted: float | None = None
    admitted: bool = False
    fruitless: int = 0


class FlightTable:
    """All flights of this process and the commands that the executor has not been sent yet."""

    def __init__(self, *, max_flights: int) -> None:
        self._max_flights = max_flights
        self._next_request = 1
        self._flights: dict[int, Flight] = {}
        self._unsent: dict[int, Flight] = {}
        self._finishes: list[int] = []
        self._aborts: list[int] = []

    def __len__(self) -> int:
        return len(self._flights)

    def statistics(self) -> dict[str, int]:
        return {"flights": len(self._flights), "flights_unsent": len(self._unsent)}

    def check_integrity(self) -> None:
        """Asserts what must always hold. For tests."""
        assert len(self._flights) <= self._max_flights
        assert all(self._flights.get(request) is flight for request, flight in self._unsent.items())
        assert not self._flights.keys() & {*self._finishes, *self._aborts}
        assert list(self._unsent) == sorted(self._unsent)

    # What the clients' side asks for.

    def check_room(self, count: int) -> None:
        """Raises RESOURCE_EXHAUSTED when `count` more flights are too many."""
        if len(self._flights) + count > self._max_flights:
            raise resource_exhausted(
                "FRONTEND_FULL",
                f"this frontend generates {len(self._flights)} completions, of {self._max_flights} at most: "
                "retry later, or ask another frontend",
                retry_after=RETRY_SECONDS,
            )

    def submit(self, submit: executor_pb2.Submit, *, deadline: float | None, sink: Sink) -> Flight:
        """Takes a request in, and takes over its `submit`. `check_room` comes first."""
        submit.request = self._next_request
        self._next_request += 1
        flight = Flight(
            request=submit.request,
            submit=submit,
            deadline=deadline,
            sink=sink,
            wants_logprobs=submit.sampling.HasField("logprobs"),
        )
        self._flights[flight.request] = self._unsent[flight.request] = flight
        return flight

    def finish(self, flight: Flight) -> None:
        """The frontend itself ended the request. Does nothing for a flight that is over."""
        self._leave(flight, self._finishes)

    def abort(self, flight: Flight) -> None:
        """Nobody waits for the request any more. Does nothing for a flight that is over."""
        self._leave(flight, self._aborts)

    def _leave(self, flight: Flight, told: list[int]) -> None:
        if self._flights.pop(flight.request, None) is None:
            return
        if self._unsent.pop(flight.request, None) is None:
            told.append(flight.request)

    # What the connection does.

    @property
    def has_commands(self) -> bool:
        return bool(self._unsent or self._finishes or self._aborts)

    def next_commands(self, now: float) -> executor_pb2.ClientCommands | None:
        """The next message of commands, of bounded size; None when there is nothing to tell."""
        if not self.has_commands:
            return None
        commands = executor_pb2.ClientCommands(finishes=self._finishes, aborts=self._aborts)
        self._finishes, self._aborts = [], []
        room = MAX_COMMAND_IDS
        while self._unsent and room > 0:
            request = next(iter(self._unsent))
            flight = self._unsent.pop(request)
            submit = commands.submits.add()
            submit.CopyFrom(flight.submit)
            if flight.emitted:
                submit.emitted_ids.extend(flight.emitted)
                # All of the prompt's log probabilities came before the first token.
                submit.sampling.ClearField("prompt_logprobs")
            if flight.deadline is not None:
                submit.remaining_us = max(1, round((flight.deadline - now) * 1e6))
            if flight.submitted is None:
                flight.submitted = now
            room -= len(submit.prompt_ids) + len(submit.emitted_ids)
        return commands

    def connection_lost(self) -> None:
        """Everything that was sent has to be sent again; what has gone down too often fails."""
        self._finishes, self._aborts = [], []
        for flight in list(self._flights.values()):
            if flight.request in self._unsent:
                continue
            flight.fruitless += 1
            if flight.fruitless >= MAX_FRUITLESS_SUBMISSIONS:
                self._fail(
                    flight,
                    unavailable(
                        "EXECUTOR_LOST",
                        f"{flight.fruitless} executors in a row were lost with this request: retry later",
                        retry_after=RETRY_SECONDS,
                    ),
                )
        self._unsent = dict(self._flights)

    def fail_all(self, error: LorikeetError) -> None:
        """Ends every flight, each with a copy of the error; the executor is not told."""
        for flight in list(self._flights.values()):
            self._fail(flight, replace(error))

    def _fail(self, flight: Flight, error: LorikeetError) -> None:
        self._flights.pop(flight.request, None)
        self._unsent.pop(flight.request, None)
        flight.sink.on_failed(error)

    def receive(self, step: executor_pb2.EngineStep) -> None:
        """Hands a step out. Raises ValueError for one that contradicts itself; requests unknown here (they
        left while it was on its way) are passed over.
        """
        for admitted in step.admitted:
            flight = self._flights.get(admitted.request)
            if flight is not None and not flight.admitted and flight.submitted is not None:
                flight.admitted = True
                flight.sink.on_admitted(admitted, flight.submitted)
        for chunk in step.prompt_logprobs:
            flight = self._flights.get(chunk.request)
            if flight is not None:
                flight.sink.on_prompt_logprobs(chunk)
        if step.requests:
            self._receive_tokens(step)
        for failed in step.failed:
            flight = self._flights.get(failed.request)
            if flight is not None:
                self._fail(flight, _error_of(failed))

    def _receive_tokens(self, step: executor_pb2.EngineStep) -> None:
        requests, splits = list(step.requests), list(step.token_splits)
        token_ids, finishes = list(step.token_ids), list(step.finishes)
        logprobs = list(step.logprobs)
        if (
            len(splits) != len(requests) + 1
            or len(finishes) != len(requests)
            or splits[-1] != len(token_ids)
            or (logprobs and len(logprobs) != len(token_ids))
        ):
            raise ValueError(f"step {step.step}: its parallel arrays differ in length")
        alternatives = {top.token: (top.ids, top.logprobs) for top in step.top_logprobs}
        flights = self._flights
        for row, request in enumerate(requests):
            flight = flights.get(request)
            if flight is None:
                continue
            start, stop, finish = splits[row], splits[row + 1], finishes[row]
            tokens = token_ids[start:stop]
            flight.emitted += tokens
            flight.fruitless = 0
            if finish:
                del flights[request]
            if flight.wants_logprobs:
                their_logprobs = logprobs[start:stop]
                theirs = {
                    token - start: alternatives[token]
                    for token in range(start, stop)
                    if token in alternatives
                }
            else:
                their_logprobs = theirs = None
            try:
                ended = flight.sink.on_tokens(tokens, finish, their_logprobs, theirs)
            except Exception:  # one request's trouble must not become everybody's
                log.exception("request %d: its tokens could not be handled", request)
                self.abort(flight)
                flight.sink.on_failed(internal("INTERNAL", "the frontend failed on this request's tokens"))
                continue
            if ended:
                self.finish(flight)


def _error_of(failed: executor_pb2.Failed) -> LorikeetError:
    delay = RETRY_SECONDS if failed.code in _CODES_WITH_DELAY else None
    return from_code(failed.code, failed.reason, failed.message, retry_after=delay)
