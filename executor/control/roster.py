"""All requests that have not ended, by key, and what there is to report about them."""

from __future__ import annotations

from executor.control.accounts import Accounts
from executor.control.lifecycle import State, Trigger
from executor.control.outputs import Event, Failed, Finished
from executor.control.request import Code, FinishReason, RequestKey
from executor.control.request_queue import RequestQueue
from executor.control.running import Running
from executor.control.sequence import Sequence
from executor.control.table import RowTable


class Roster:
    """The one place where requests end, whether they wait or run."""

    def __init__(self, *, table: RowTable, accounts: Accounts, queue: RequestQueue, running: Running) -> None:
        self._table = table
        self._accounts = accounts
        self._queue = queue
        self._running = running
        self._sequences: dict[RequestKey, Sequence] = {}
        self._by_client: dict[int, set[RequestKey]] = {}
        self._events: list[Event] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._sequences

    def get(self, key: RequestKey) -> Sequence | None:
        return self._sequences.get(key)

    def of_client(self, client: int) -> tuple[Sequence, ...]:
        return tuple(self._sequences[key] for key in sorted(self._by_client.get(client, ())))

    def add(self, sequence: Sequence) -> None:
        key = sequence.key
        self._sequences[key] = sequence
        self._by_client.setdefault(key.client, set()).add(key)

    def report(self, event: Event) -> None:
        self._events.append(event)

    def take_events(self) -> tuple[Event, ...]:
        events, self._events = tuple(self._events), []
        return events

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a request; nothing more is sent for it. Its full pages stay cached."""
        request = sequence.request
        completion = len(sequence.emitted)
        if sequence.row >= 0:
            completion = int(self._table.length[sequence.row] - self._table.prompt_length[sequence.row])
        self._events.append(
            Finished(
                key=sequence.key,
                reason=reason,
                prompt_tokens=len(request.prompt_ids),
                cached_tokens=sequence.cached_tokens or 0,
                completion_tokens=completion,
            )
        )
        self._end(sequence)

    def fail(self, sequence: Sequence, code: Code, reason: str, message: str) -> None:
        """Ends a request with an error."""
        self._events.append(Failed(key=sequence.key, code=code, reason=reason, message=message))
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        key = sequence.key
        del self._sequences[key]
        keys = self._by_client[key.client]
        keys.discard(key)
        if not keys:
            del self._by_client[key.client]
        if sequence.state == State.WAITING:
            self._queue.remove(sequence)
            sequence.move(Trigger.END)
            self._accounts.close_if_idle(sequence.account)
        else:
            self._running.end(sequence)

    def check_integrity(self) -> None:
        assert sum(len(keys) for keys in self._by_client.values()) == len(self._sequences)
        for key, sequence in self._sequences.items():
            assert sequence.key == sequence.request.key == key
            assert key in self._by_client[key.client]
            assert sequence.state not in (State.ENDING, State.ENDED), f"{key} has ended and is still listed"
            assert (sequence.row >= 0) == (sequence.state != State.WAITING)
