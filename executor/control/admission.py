"""Who gets a row next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from executor.control.accounts import Accounts
from executor.control.outputs import Admitted
from executor.control.queue_policy import QueuePolicy
from executor.control.request_queue import RequestQueue
from executor.control.residency import Residency
from executor.control.roster import Roster
from executor.control.running import Running
from executor.control.sequence import Sequence
from executor.control.table import RowTable


class Admission:
    """Admits in the policy's order and waits for the first if there are no pages for it: small requests must
    not pass a large one for ever.
    """

    def __init__(
        self,
        *,
        table: RowTable,
        accounts: Accounts,
        queue: RequestQueue,
        running: Running,
        roster: Roster,
        policy: QueuePolicy,
    ) -> None:
        self._table = table
        self._accounts = accounts
        self._queue = queue
        self._running = running
        self._roster = roster
        self._policy = policy
        self._eligible: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._refused: tuple[Sequence, int] | None = None

    def begin(self) -> bool:
        """Once a plan, before `next`; False if `next` will admit none."""
        if not self._table.free or not len(self._queue):
            return False
        accounts = self._accounts
        self._eligible = accounts.waiting_while(Residency.RESIDENT) & ~accounts.draining
        return True

    def next(self) -> Sequence | None:
        """Admits one request and returns it; None when no more can be admitted in this plan."""
        if not self._table.free or not np.count_nonzero(self._eligible):
            return None
        account = self._policy.choose(self._accounts, self._eligible)
        sequence = self._queue.head(account)
        if (
            self._refused is not None
            and self._refused[0] is sequence
            and self._running.room <= self._refused[1]
        ):
            return None
        if not self._running.enter(sequence):
            self._refused = sequence, self._running.room
            return None
        self._refused = None
        self._queue.remove(sequence)
        self._eligible[account] = self._accounts.waiting[account] > 0
        if sequence.cached_tokens is None:
            cached = min(int(self._table.planned[sequence.row]), len(sequence.request.prompt_ids))
            sequence.cached_tokens = cached
            self._roster.report(
                Admitted(
                    key=sequence.key,
                    cached_tokens=cached,
                    digest=sequence.request.digest,
                    was_resident=sequence.was_resident,
                )
            )
        return sequence
