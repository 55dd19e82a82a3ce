"""The scheduler: which tokens of which requests are computed in the next step, and what their results mean.

Pure: no clock, thread, device or socket. `plan()` of the next step may come before `advance()` of the last;
a request that ended in between is computed once more and the result discarded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from executor.control.accounts import Accounts
from executor.control.admission import Admission
from executor.control.advancer import Advancer
from executor.control.config import SchedulerConfig
from executor.control.eviction import EVICTION_POLICIES
from executor.control.foresight import Foresight
from executor.control.host_tier import HostStatistics
from executor.control.loader import LoaderEvent
from executor.control.outputs import Failed, Outputs, only_events
from executor.control.page_cache import PageCache
from executor.control.placement import Placement
from executor.control.plan import StepPlan, StepResult
from executor.control.planner import Planner, StepRecord
from executor.control.queue_policy import QUEUE_POLICIES
from executor.control.request import BASE_DIGEST, Code, FinishReason, Request, RequestKey, no_ids
from executor.control.request_queue import RequestQueue
from executor.control.residency import Residency
from executor.control.roster import Roster
from executor.control.running import Running
from executor.control.sequence import Sequence
from executor.control.slots import Action, AdapterSlots, Move
from executor.control.table import RowTable
from executor.control.validation import refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """Counts at one moment. Pages cached are those in the prefix tree, whether or not they are held too."""

    waiting: int
    running: int
    pages: int
    pages_held: int
    pages_cached: int
    host: HostStatistics
    adapters_resident: int
    adapters_arriving: int
    adapter_units_free: int
    pool_loads: int
    pool_evictions: int
    steps: int
    preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """An adapter's place on the GPU and its requests, at one moment."""

    is_resident: bool
    waiting: int
    running: int


class Scheduler:
    """Composes the owners of rows, pages, slots and the queue. Not thread-safe."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._table = table = RowTable(
            rows=config.max_running, longest=config.longest, page_size=config.page_size
        )
        self._cache = cache = PageCache(config.pages, config.page_size, config.host_pages)
        self._slots = slots = AdapterSlots(
            slots=config.adapter_slots,
            units=config.pool_units,
            eviction=EVICTION_POLICIES[config.pool_eviction](),
        )
        self._accounts = accounts = Accounts()
        self._queue = queue = RequestQueue(accounts)
        self._running = running = Running(
            config, table=table, cache=cache, slots=slots, accounts=accounts, queue=queue
        )
        self._roster = roster = Roster(table=table, accounts=accounts, queue=queue, running=running)
        policy = QUEUE_POLICIES[config.queue_policy]()
        self._foresight = Foresight(slots=slots, accounts=accounts, max_leases=config.max_leases)
        self._placement = Placement(
            config,
            slots=slots,
            accounts=accounts,
            queue=queue,
            roster=roster,
            cache=cache,
            policy=policy,
            foresight=self._foresight,
        )
        admission = Admission(
            table=table, accounts=accounts, queue=queue, running=running, roster=roster, policy=policy
        )
        self._planner = Planner(
            config, table=table, cache=cache, accounts=accounts, running=running, admission=admission
        )
        self._advancer = Advancer(table=table, running=running, roster=roster)
        self._in_flight: deque[StepRecord] = deque()
        self._steps = 0
        self._arrivals = 0

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._roster)

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._roster

    def add(self, request: Request) -> None:
        """Takes a request, or reports why it is refused; never raises for what a client sent."""
        failed = refusal(request, self.config) or self._overload(request)
        if failed is not None:
            self._roster.report(failed)
            return
        residency = self._slots.residency(request.digest)
        account = self._accounts.open(request.digest, residency)
        self._arrivals += 1
        sequence = Sequence(
            request=request,
            key=request.key,
            namespace=request.namespace,
            arrival=self._arrivals,
            account=account,
            emitted=request.emitted_ids,
            was_resident=request.digest == BASE_DIGEST or residency == Residency.RESIDENT,
            started=len(request.emitted_ids) > 0,
        )
        self._roster.add(sequence)
        self._queue.push(sequence)
        if not sequence.was_resident and self._accounts.waiting[account] == 1:
            self._slots.prefetch(request.digest)
        self._finish_if_complete(sequence)

    def hint(self, digest: str) -> None:
        """A request for this digest is likely to come."""
        if self.config.adapter_slots:
            self._foresight.hint(digest)

    def finish(self, key: RequestKey) -> None:
        """The frontend has ended a request (a stop string). Unknown keys are ignored: they may have ended."""
        self._end(key, FinishReason.STOP)

    def abort(self, key: RequestKey) -> None:
        """Nobody waits for a request any more. Unknown keys are ignored."""
        self._end(key, FinishReason.ABORTED)

    def abort_client(self, client: int) -> None:
        """Aborts all requests of a connection that is gone."""
        for sequence in self._roster.of_client(client):
            self._roster.finish(sequence, FinishReason.ABORTED)

    def fail(self, key: RequestKey, code: Code, reason: str, message: str) -> None:
        """Ends a request with an error. Unknown keys are ignored."""
        sequence = self._roster.get(key)
        if sequence is not None:
            self._roster.fail(sequence, code, reason, message)

    def handle(self, event: LoaderEvent) -> None:
        """Takes a report of the adapter loader."""
        self._placement.handle(event)

    def plan(self) -> StepPlan | None:
        """Plans the next step, which is then launched, or failed; None if nothing can be computed now."""
        self._placement.update()
        planned = self._planner.plan(self._steps)
        if planned is None:
            return None
        plan, record = planned
        self._steps += 1
        self._in_flight.append(record)
        return plan

    def take_actions(self) -> list[Action]:
        """What is to be done about adapters, in this order, before the next launch."""
        return self._slots.take_actions()

    def take_moves(self) -> list[Move]:
        """Where adapters have gone since the last call, in order."""
        return self._slots.take_moves()

    def advance(self, result: StepResult) -> Outputs:
        """Applies the result of the oldest step in flight; returns its tokens and all events so far."""
        record = next(record for record in self._in_flight if not record.retired)
        assert record.step == result.step, f"step {result.step} came back, step {record.step} was expected"
        outputs = self._advancer.advance(record, result)
        self._retire(record)
        events = self._roster.take_events()
        return replace(outputs, events=events) if events else outputs

    def take_outputs(self) -> Outputs:
        """Returns the events since the last outputs, for when no step brings them."""
        return only_events(self._roster.take_events())

    def fail_step(self, step: int, message: str) -> None:
        """A step in flight went wrong: its requests fail, their pages are not trusted, the others go on."""
        record = next(record for record in self._in_flight if record.step == step)
        for row in record.rows.tolist():
            sequence = self._table.sequences[row]
            if sequence is None:
                continue
            sequence.tainted = True
            if sequence.key in self._roster:
                self._roster.fail(sequence, Code.INTERNAL, "STEP_FAILED", message)
        self._retire(record)
        self._cache.distrust_host()
        self._running.announce_all()

    def _overload(self, request: Request) -> Failed | None:
        if request.key in self._roster:
            code, reason = Code.ALREADY_EXISTS, "DUPLICATE_REQUEST"
            message = f"request {request.index} is still being served: give each request its own number"
        elif len(self._queue) >= self.config.max_waiting:
            code, reason = Code.RESOURCE_EXHAUSTED, "QUEUE_FULL"
            message = f"{len(self._queue)} requests are waiting already: try again later"
        else:
            return None
        return Failed(key=request.key, code=code, reason=reason, message=message)

    def _end(self, key: RequestKey, reason: FinishReason) -> None:
        sequence = self._roster.get(key)
        if sequence is not None:
            self._roster.finish(sequence, reason)

    def _finish_if_complete(self, sequence: Sequence) -> None:
        """A resubmitted request may have been at its end, with only the news of it lost."""
        emitted = sequence.request.emitted_ids
        if not len(emitted):
            return
        if int(emitted[-1]) in self._running.stop_ids(sequence):
            self._roster.finish(sequence, FinishReason.STOP)
        elif len(sequence.ids) >= self._running.limit(sequence):
            self._roster.finish(sequence, FinishReason.LENGTH)

    def _retire(self, record: StepRecord) -> None:
        """Steps retire in order; one that failed before its turn waits for those before it."""
        record.retired = True
        while self._in_flight and self._in_flight[0].retired:
            self._running.retire(self._in_flight.popleft().step)

    def statistics(self) -> SchedulerStatistics:
        """May be called from another thread, and is then approximate."""
        return SchedulerStatistics(
            waiting=len(self._queue),
            running=self._table.used,
            pages=self._cache.pages,
            pages_held=self._cache.held,
            pages_cached=self._cache.cached,
            host=self._cache.host_statistics(),
            adapters_resident=len(self._slots.resident),
            adapters_arriving=self._slots.leases,
            adapter_units_free=self._slots.free_units,
            pool_loads=self._slots.loads,
            pool_evictions=self._slots.evictions,
            steps=self._steps,
            preemptions=self._running.preemptions,
        )

    def presence(self, digest: str) -> Presence:
        """How an adapter stands here. May be called from another thread, and is then approximate."""
        account = self._accounts.find(digest)
        return Presence(
            is_resident=self._slots.residency(digest) == Residency.RESIDENT,
            waiting=0 if account is None else int(self._accounts.waiting[account]),
            running=0 if account is None else int(self._accounts.running[account]),
        )

    def check_integrity(self) -> None:
        """Raises AssertionError where any owner's books do not balance."""
        private = [self._table.private_pages(row) for row in self._table.taken().tolist()]
        self._cache.check_integrity(np.concatenate([no_ids(), *private]))
        for owner in (self._table, self._slots, self._accounts, self._queue, self._roster, self._placement):
            owner.check_integrity()
        self._running.check_integrity()
        self._foresight.check_integrity()
