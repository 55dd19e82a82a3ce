"""Runs requests through a TorchRunner, all in one batch, without a scheduler: every row has its own pages."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from executor.control.plan import LAST_SAMPLED, PromptLogprobs, RowInstall, StepPlan, StepResult
from executor.control.request import SamplingParams
from executor.runner import TorchRunner


@dataclass(slots=True, kw_only=True)
class HandRow:
    """A request, and what came of it; its row is its index."""

    prompt: list[int]
    sampling: SamplingParams
    slot: int = -1
    emitted: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    computed: int = 0

    @property
    def known(self) -> list[int]:
        return self.prompt + self.emitted + self.tokens

    @property
    def done(self) -> bool:
        return len(self.emitted) + len(self.tokens) >= self.sampling.max_tokens

    def next_ids(self, chunk: int) -> list[int]:
        return [LAST_SAMPLED] if self.tokens else self.known[self.computed :][:chunk]


def run_by_hand(
    runner: TorchRunner, requests: Sequence[HandRow], *, page_size: int, chunk: int = 1 << 30
) -> None:
    """Run until every request has its max_tokens, `chunk` prompt tokens a row and step."""
    installs = tuple(
        RowInstall(row=row, sampling=r.sampling, prompt_ids=_ids(r.prompt), emitted_ids=_ids(r.emitted))
        for row, r in enumerate(requests)
    )
    columns = [range(-(-(len(r.prompt) + r.sampling.max_tokens) // page_size)) for r in requests]
    cells = [(row, column) for row, pages in enumerate(columns) for column in pages]
    # Pages in reverse, so that neighbours in a sequence are not neighbours in memory.
    table = np.array(
        [(row, column, page) for page, (row, column) in enumerate(reversed(cells))], dtype=np.int32
    )
    step = 0
    while rows := [row for row, r in enumerate(requests) if not r.done]:
        plan = _plan(step, rows, requests, chunk, installs, table)
        _absorb(requests, plan, runner.collect(runner.launch(plan)))
        installs, table, step = (), table[:0], step + 1


def _plan(
    step: int,
    rows: list[int],
    requests: Sequence[HandRow],
    chunk: int,
    installs: tuple[RowInstall, ...],
    table: np.ndarray,
) -> StepPlan:
    chunks = [requests[row].next_ids(chunk) for row in rows]
    ends = [requests[row].computed + len(ids) for row, ids in zip(rows, chunks, strict=True)]
    return StepPlan(
        step=step,
        installs=installs,
        rows=_ids(rows),
        query_splits=_ids([0, *np.cumsum([len(ids) for ids in chunks])]),
        input_ids=_ids([token for ids in chunks for token in ids]),
        start_positions=_ids([requests[row].computed for row in rows]),
        slots=_ids([requests[row].slot for row in rows]),
        samples=np.array([end == len(requests[row].known) for row, end in zip(rows, ends, strict=True)]),
        page_rows=table[:, 0],
        page_columns=table[:, 1],
        page_ids=table[:, 2],
    )


def _absorb(requests: Sequence[HandRow], plan: StepPlan, result: StepResult) -> None:
    assert result.step == plan.step
    assert result.rows.tolist() == plan.rows[plan.samples].tolist()
    for row, length in zip(plan.rows.tolist(), np.diff(plan.query_splits).tolist(), strict=True):
        requests[row].computed += length
    for i, row in enumerate(result.rows.tolist()):
        requests[row].tokens.append(int(result.token_ids[i]))
        requests[row].logprobs.append(float(result.logprobs[i]))
        if row in result.top:
            requests[row].top.append(result.top[row])
    for scored in result.prompt_logprobs:
        requests[scored.row].prompt_logprobs.append(scored)


def _ids(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)
