"""Turns the result of a step into outputs: tokens recorded, stop conditions checked, who is done leaves."""

from __future__ import annotations

import numpy as np

from executor.control.outputs import FirstToken, Outputs, PromptLogprobsReady
from executor.control.plan import PromptLogprobs, StepResult
from executor.control.planner import StepRecord
from executor.control.request import FinishReason, Float32Array, Int32Array
from executor.control.roster import Roster
from executor.control.running import Running
from executor.control.table import RowTable


class Advancer:
    def __init__(self, *, table: RowTable, running: Running, roster: Roster) -> None:
        self._table = table
        self._running = running
        self._roster = roster

    def advance(self, record: StepRecord, result: StepResult) -> Outputs:
        """Applies a result. Tokens of rows that have ended since the plan was made are discarded."""
        table, roster = self._table, self._roster
        rows, token_ids, logprobs = result.rows, result.token_ids, result.logprobs
        as_planned = rows.tobytes() == record.sampled.tobytes()
        assert as_planned, f"step {result.step} sampled other rows than planned"
        assert len(token_ids) == len(rows), "one token a row, until speculation comes"
        live = table.live[rows]
        if not live.all():
            rows, token_ids, logprobs = rows[live], token_ids[live], logprobs[live]
        reasons = table.append(rows, token_ids)

        for part in result.prompt_logprobs:
            self._report_prompt_logprobs(part)
        for prompt in record.prefilled:
            sequence = prompt.sequence
            if sequence.row != prompt.row or not table.live[prompt.row]:
                continue
            if not sequence.started:
                sequence.started = True
                roster.report(FirstToken(key=sequence.key))
            self._running.share_prompt(prompt.row, prompt.tokens)

        outputs = self._outputs(result, rows, token_ids, logprobs, reasons)
        for at in reasons.nonzero()[0].tolist():
            roster.finish(table.sequence(int(rows[at])), FinishReason(int(reasons[at])))
        return outputs

    def _outputs(
        self,
        result: StepResult,
        rows: Int32Array,
        token_ids: Int32Array,
        logprobs: Float32Array,
        reasons: np.ndarray,
    ) -> Outputs:
        table = self._table
        top = {}
        if result.top:
            top = {at: result.top[row] for at, row in enumerate(rows.tolist()) if row in result.top}
        return Outputs(
            step=result.step,
            clients=table.client[rows],
            indexes=table.index[rows],
            token_splits=np.arange(len(rows) + 1, dtype=np.int32),
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reasons=reasons,
            wants_logprobs=table.wants_logprobs[rows],
            top=top,
        )

    def _report_prompt_logprobs(self, part: PromptLogprobs) -> None:
        """Passes on what was not sent before: a preempted prompt is computed again from its start."""
        if not self._table.live[part.row]:
            return
        sequence = self._table.sequence(part.row)
        known = max(sequence.prompt_logprobs_from - part.start, 0)
        if known >= len(part.logprobs):
            return
        sequence.prompt_logprobs_from = part.start + len(part.logprobs)
        self._roster.report(
            PromptLogprobsReady(
                key=sequence.key,
                start=part.start + known,
                logprobs=part.logprobs[known:],
                top_ids=part.top_ids[known:],
                top_logprobs=part.top_logprobs[known:],
            )
        )
