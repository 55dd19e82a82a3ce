"""Steps in torch: applies a plan's changes, runs the decoder and samples."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from executor.control.plan import LAST_SAMPLED, PromptLogprobs, RowInstall, StepPlan, StepResult
from executor.model.attention import PagedAttention, Spans
from executor.model.batch import build_batch
from executor.model.config import ModelConfig
from executor.model.decoder import Decoder
from executor.model.kv_cache import KvCache
from executor.model.parameters import Parameters
from executor.model.slots import AdapterPool
from executor.sampling.logprobs import score
from executor.sampling.sampler import Sampler
from kernels.lora import LoraBatch

# Logits of prompt tokens are computed this many rows at a time, to bound their memory.
_PROMPT_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """`max_rows` run at once; the cache holds `pages` of `page_size` tokens; no sequence exceeds
    `max_context`.
    """

    max_rows: int
    pages: int
    page_size: int
    max_context: int


@dataclass(slots=True, kw_only=True, eq=False)
class PendingStep:
    """A forward whose rows wait to be sampled; `result` once they are.

    `logits` is float32 `[S, V]`; rows, positions int64[S] and order (each row's place in the plan's order)
    belong to it.
    """

    step: int
    logits: Tensor
    rows: np.ndarray
    positions: np.ndarray
    order: np.ndarray
    prompt_logprobs: tuple[PromptLogprobs, ...]
    result: StepResult | None = None


class TorchRunner:
    """Implements `control.runner.Runner`. Owns the KV cache, the page table and the rows' sampling state."""

    def __init__(
        self, model: ModelConfig, parameters: Parameters, *, pool: AdapterPool, config: RunnerConfig
    ) -> None:
        dtype, device = parameters.embed.dtype, parameters.embed.device
        self._cache = KvCache(
            model, pages=config.pages, page_size=config.page_size, dtype=dtype, device=device
        )
        self._attention = PagedAttention(model, self._cache, dtype=dtype)
        self._decoder = Decoder(
            model, parameters, cache=self._cache, attention=self._attention, adapters=pool.table
        )
        self._windows = tuple(set(model.windows))
        self._page_table = np.zeros(
            (config.max_rows, -(-config.max_context // config.page_size)), dtype=np.int32
        )
        self._sampler = Sampler(rows=config.max_rows, eos_ids=model.eos_ids)
        self._last_sampled = np.zeros(config.max_rows, dtype=np.int64)
        self._prompt_scoring: dict[int, _PromptScoring] = {}
        self._unsampled: PendingStep | None = None

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Apply the plan's changes and compute its logits. Samples the step before, where that is still
        due.
        """
        if self._unsampled is not None:
            self._sample(self._unsampled)
        for install in plan.installs:
            self._install(install)
        self._page_table[plan.page_rows, plan.page_columns] = plan.page_ids

        by_slot = np.argsort(plan.slots, kind="stable")
        spans, slots, input_ids = self._flatten(plan, by_slot)
        batch = build_batch(
            spans,
            input_ids=input_ids,
            slots=slots,
            page_table=self._page_table,
            page_size=self._cache.page_size,
            attention=self._attention,
            windows=self._windows,
        )
        x_TD = self._decoder.forward(batch)

        sampled = np.flatnonzero(plan.samples[by_slot])
        last_tokens = torch.from_numpy(spans.splits[1:][sampled] - 1)
        lora = LoraBatch.of_rows(slots[sampled], np.ones(len(sampled), dtype=np.int64))
        pending = PendingStep(
            step=plan.step,
            logits=self._decoder.logits(x_TD.index_select(0, last_tokens), lora),
            rows=spans.rows[sampled],
            positions=(spans.starts + spans.lengths)[sampled],
            order=by_slot[sampled],
            prompt_logprobs=self._score_prompts(spans, slots, x_TD) if self._prompt_scoring else (),
        )
        self._unsampled = pending
        return pending

    @torch.inference_mode()
    def collect(self, pending: PendingStep) -> StepResult:
        """Sample the step's rows."""
        return pending.result or self._sample(pending)

    def _install(self, install: RowInstall) -> None:
        self._sampler.install(install.row, install.sampling, install.prompt_ids, install.emitted_ids)
        self._prompt_scoring.pop(install.row, None)
        top = install.sampling.prompt_logprobs
        # Once tokens have been emitted, the prompt has been scored.
        if top is not None and not len(install.emitted_ids):
            self._prompt_scoring[install.row] = _PromptScoring(
                prompt_ids=install.prompt_ids.astype(np.int64), top=top
            )

    def _flatten(self, plan: StepPlan, by_slot: np.ndarray) -> tuple[Spans, np.ndarray, np.ndarray]:
        """The plan's rows in the given order: spans, slots and input ids with sampled ones filled in."""
        lengths = np.diff(plan.query_splits).astype(np.int64)[by_slot]
        splits = np.concatenate(([0], np.cumsum(lengths)))
        spans = Spans(
            rows=plan.rows[by_slot],
            starts=plan.start_positions[by_slot].astype(np.int64),
            lengths=lengths,
            splits=splits,
        )
        moved_from = np.repeat(plan.query_splits[:-1][by_slot] - splits[:-1], lengths) + np.arange(splits[-1])
        input_ids = plan.input_ids[moved_from].astype(np.int64)
        last_sampled = self._last_sampled[np.repeat(spans.rows, lengths)]
        return spans, plan.slots[by_slot], np.where(input_ids == LAST_SAMPLED, last_sampled, input_ids)

    def _sample(self, pending: PendingStep) -> StepResult:
        assert pending is self._unsampled, "steps are sampled once, in the order of their launches"
        self._unsampled = None  # also where sampling fails: the steps after it go on
        sampled = self._sampler.sample(pending.logits, pending.rows, pending.positions)
        self._last_sampled[pending.rows] = sampled.token_ids
        order = np.argsort(pending.order, kind="stable")
        pending.result = StepResult(
            step=pending.step,
            rows=pending.rows[order],
            token_splits=np.arange(len(order) + 1, dtype=np.int32),
            token_ids=sampled.token_ids[order],
            logprobs=sampled.logprobs[order],
            top=sampled.top,
            prompt_logprobs=pending.prompt_logprobs,
        )
        return pending.result

    def _score_prompts(self, spans: Spans, slots: np.ndarray, x_TD: Tensor) -> tuple[PromptLogprobs, ...]:
        """Log probabilities of the prompt tokens that follow this step's tokens, for rows that want them."""
        scored: list[PromptLogprobs] = []
        for i, row in enumerate(spans.rows.tolist()):
            scoring = self._prompt_scoring.get(row)
            if scoring is None:
                continue
            start = int(spans.starts[i]) + 1
            targets = torch.from_numpy(scoring.prompt_ids[start : start + int(spans.lengths[i])])
            if len(targets):
                first = int(spans.splits[i])
                scored.append(
                    self._score_prompt(
                        row, start, x_TD[first : first + len(targets)], targets, slots[i], scoring.top
                    )
                )
            if start + len(targets) >= len(scoring.prompt_ids):
                del self._prompt_scoring[row]
        return tuple(scored)

    def _score_prompt(
        self, row: int, start: int, x_ND: Tensor, targets_N: Tensor, slot: int, top: int
    ) -> PromptLogprobs:
        parts = []
        for x_BD, targets_B in zip(x_ND.split(_PROMPT_BLOCK), targets_N.split(_PROMPT_BLOCK), strict=True):
            lora = LoraBatch.of_rows(np.array([slot]), np.array([len(x_BD)]))
            parts.append(score(self._decoder.logits(x_BD, lora), targets_B, top))
        return PromptLogprobs(
            row=row,
            start=start,
            logprobs=np.concatenate([part.logprobs for part in parts]),
            top_ids=np.concatenate([part.top_ids for part in parts]),
            top_logprobs=np.concatenate([part.top_logprobs for part in parts]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _PromptScoring:
    """A row that still owes log probabilities of its prompt: the ids int64[P] and how many alternatives."""

    prompt_ids: np.ndarray
    top: int
