from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import pytest

from frontend.engine.flights import MAX_COMMAND_IDS, MAX_FRUITLESS_SUBMISSIONS, Flight, FlightTable
from lorikeet.v1 import executor_pb2
from rpc.errors import LorikeetError, unavailable


class Recorder:
    """A sink that notes what it is told; ends a request at the token 99 and breaks at 98."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.finish = 0
        self.logprobs: list[Any] = []
        self.alternatives: list[Any] = []
        self.admitted: list[tuple[int, float]] = []
        self.prompt_chunks = 0
        self.error: LorikeetError | None = None

    def on_admitted(self, admitted: executor_pb2.Admitted, submitted: float) -> None:
        self.admitted.append((admitted.cached_tokens, submitted))

    def on_tokens(
        self,
        token_ids: Sequence[int],
        finish: int,
        logprobs: Sequence[float] | None,
        alternatives: Mapping[int, Any] | None,
    ) -> bool:
        if 98 in token_ids:
            raise RuntimeError("cannot count to 98")
        self.tokens += token_ids
        self.finish = finish
        self.logprobs.append(logprobs)
        self.alternatives.append(alternatives)
        return 99 in token_ids

    def on_prompt_logprobs(self, chunk: executor_pb2.PromptLogprobs) -> None:
        self.prompt_chunks += 1

    def on_failed(self, error: LorikeetError) -> None:
        self.error = error


def submit(
    table: FlightTable, prompt: Sequence[int] = (1, 2), deadline: float | None = None, **sampling: Any
) -> tuple[Flight, Recorder]:
    sink = Recorder()
    message = executor_pb2.Submit(prompt_ids=prompt, sampling=executor_pb2.EngineSampling(seed=7, **sampling))
    return table.submit(message, deadline=deadline, sink=sink), sink


def step(
    rows: Mapping[int, Sequence[int]], finishes: Sequence[int] = (), **fields: Any
) -> executor_pb2.EngineStep:
    splits = [0]
    for tokens in rows.values():
        splits.append(splits[-1] + len(tokens))
    return executor_pb2.EngineStep(
        requests=list(rows),
        token_splits=splits,
        token_ids=[token for tokens in rows.values() for token in tokens],
        finishes=finishes or [0] * len(rows),
        **fields,
    )


def sent(table: FlightTable, now: float = 0.0) -> executor_pb2.ClientCommands:
    commands = table.next_commands(now)
    assert commands is not None
    table.check_integrity()
    return commands


def test_commands_travel_together_and_once():
    table = FlightTable(max_flights=4)
    (first, _), (second, _) = submit(table), submit(table, deadline=12.5)
    commands = sent(table, now=10.0)
    assert [message.request for message in commands.submits] == [first.request, second.request]
    assert [message.remaining_us for message in commands.submits] == [0, 2_500_000]
    table.abort(first)
    table.finish(second)
    commands = sent(table)
    assert (list(commands.aborts), list(commands.finishes)) == ([first.request], [second.request])
    assert table.next_commands(0.0) is None
    assert len(table) == 0


def test_a_request_that_leaves_before_it_was_sent_is_never_mentioned():
    table = FlightTable(max_flights=4)
    flight, _ = submit(table)
    table.abort(flight)
    table.abort(flight)
    assert table.next_commands(0.0) is None


def test_a_message_of_commands_is_bounded():
    table = FlightTable(max_flights=4)
    for _ in range(3):
        submit(table, prompt=[1] * (MAX_COMMAND_IDS // 2 + 1))
    assert [len(sent(table).submits), len(sent(table).submits)] == [2, 1]


def test_tokens_go_to_their_requests_and_the_ended_one_leaves():
    table = FlightTable(max_flights=4)
    (first, one), (second, two) = submit(table), submit(table)
    sent(table)
    table.receive(step({second.request: [5, 6], 77: [1], first.request: [9]}, [0, 0, 2]))
    assert (one.tokens, one.finish, two.tokens, two.finish) == ([9], 2, [5, 6], 0)
    assert len(table) == 1
    assert not table.has_commands


def test_what_the_sink_ends_is_finished_at_the_executor():
    table = FlightTable(max_flights=4)
    flight, _ = submit(table)
    sent(table)
    table.receive(step({flight.request: [99]}))
    assert list(sent(table).finishes) == [flight.request]


def test_a_sink_that_breaks_takes_nobody_along():
    table = FlightTable(max_flights=4)
    (broken, sink), (other, good) = submit(table), submit(table)
    sent(table)
    table.receive(step({broken.request: [98], other.request: [5]}))
    assert sink.error is not None
    assert sink.error.code is grpc.StatusCode.INTERNAL
    assert good.tokens == [5]
    assert list(sent(table).aborts) == [broken.request]


def test_logprobs_reach_those_who_asked():
    table = FlightTable(max_flights=4)
    (plain, one), (asking, two) = submit(table), submit(table, logprobs=1)
    sent(table)
    table.receive(
        step(
            {plain.request: [4], asking.request: [5, 6]},
            logprobs=[-1.0, -2.0, -3.0],
            top_logprobs=[
                executor_pb2.TopLogprobs(request=asking.request, token=2, ids=[8], logprobs=[-0.5])
            ],
        )
    )
    assert one.logprobs == [None]
    assert two.logprobs == [[-2.0, -3.0]]
    assert {position: list(ids) for position, (ids, _) in two.alternatives[0].items()} == {1: [8]}


def test_after_a_lost_connection_prompt_and_emitted_ids_are_sent_again():
    table = FlightTable(max_flights=4)
    (first, sink), (second, _) = submit(table, prompt_logprobs=0), submit(table)
    sent(table, now=3.0)
    table.receive(
        step({first.request: [5]}, admitted=[executor_pb2.Admitted(request=first.request, cached_tokens=1)])
    )
    table.abort(second)
    table.connection_lost()
    table.check_integrity()
    commands = sent(table, now=9.0)
    assert not commands.aborts, "the new executor never knew it"
    (again,) = commands.submits
    assert (again.request, list(again.prompt_ids), list(again.emitted_ids)) == (first.request, [1, 2], [5])
    assert again.sampling.seed == 7
    assert not again.sampling.HasField("prompt_logprobs")
    table.receive(
        step({first.request: [6]}, admitted=[executor_pb2.Admitted(request=first.request, cached_tokens=3)])
    )
    assert sink.tokens == [5, 6]
    assert sink.admitted == [(1, 3.0)], "timings are those of the first admission"


def test_a_request_that_every_executor_dies_of_is_given_up():
    table = FlightTable(max_flights=4)
    flight, sink = submit(table)
    for _ in range(MAX_FRUITLESS_SUBMISSIONS - 1):
        sent(table)
        table.connection_lost()
    sent(table)
    table.receive(step({flight.request: [5]}))
    for _ in range(MAX_FRUITLESS_SUBMISSIONS - 1):
        table.connection_lost()
        assert sink.error is None
        sent(table)
    table.connection_lost()
    assert sink.error is not None
    assert sink.error.code is grpc.StatusCode.UNAVAILABLE
    assert len(table) == 0


def test_waiting_through_an_outage_is_not_held_against_a_request():
    table = FlightTable(max_flights=4)
    _, sink = submit(table)
    for _ in range(10):
        table.connection_lost()
    assert sink.error is None


def test_failures_carry_code_reason_and_delay():
    table = FlightTable(max_flights=4)
    (full, one), (bad, two) = submit(table), submit(table)
    sent(table)
    table.receive(
        executor_pb2.EngineStep(
            failed=[
                executor_pb2.Failed(request=full.request, code=8, reason="QUEUE_FULL", message="later"),
                executor_pb2.Failed(request=bad.request, code=3, reason="BAD", message="never"),
            ]
        )
    )
    assert one.error is not None
    assert two.error is not None
    assert (one.error.code, one.error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert one.error.retry_after is not None
    assert two.error.retry_after is None


def test_the_table_is_bounded():
    table = FlightTable(max_flights=2)
    submit(table)
    table.check_room(1)
    with pytest.raises(LorikeetError) as caught:
        table.check_room(2)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_after is not None


def test_all_fail_with_errors_of_their_own():
    table = FlightTable(max_flights=2)
    (_, one), (_, two) = submit(table), submit(table)
    table.fail_all(unavailable("GONE", "gone"))
    assert one.error is not None
    assert two.error is not None
    assert one.error is not two.error


@pytest.mark.parametrize(
    "message",
    [
        executor_pb2.EngineStep(requests=[1], token_splits=[0], token_ids=[1], finishes=[0]),
        executor_pb2.EngineStep(requests=[1], token_splits=[0, 2], token_ids=[1], finishes=[0]),
        executor_pb2.EngineStep(requests=[1], token_splits=[0, 1], token_ids=[1], finishes=[]),
        executor_pb2.EngineStep(
            requests=[1], token_splits=[0, 1], token_ids=[1], finishes=[0], logprobs=[1.0, 2.0]
        ),
    ],
)
def test_a_step_that_contradicts_itself_is_refused(message: executor_pb2.EngineStep):
    with pytest.raises(ValueError, match="parallel arrays"):
        FlightTable(max_flights=1).receive(message)
