"""Steps in torch: applies a plan's changes, runs the decoder and samples, on the CPU or a GPU.

Nothing but `collect` waits for the device:

    launch t:  sample t - 1, where that is due | install rows, send the batch | forward t
    collect t: sample t, where that is due     | wait for its tokens

Sampling comes as late as it can, so that a step's masks and penalties may depend on what the host has learned
since its launch. Ids go from one step to the next on the device.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from executor.control.plan import RowInstall, StepPlan, StepResult
from executor.model.attention import Attention, PagedAttention, Spans
from executor.model.batch import Sampled, build_batch
from executor.model.config import ModelConfig
from executor.model.decoder import Decoder
from executor.model.host_pages import HostPages
from executor.model.kv_cache import KvCache
from executor.model.page_table import PageTable
from executor.model.parameters import Parameters
from executor.model.slots import AdapterPool
from executor.pending import Computed, PendingStep
from executor.prompt_scoring import PromptScorer
from executor.sampling.sampler import Draw, Sampler
from kernels.fused import FusedSteps, reference
from kernels.lora import LoraBatch

if TYPE_CHECKING:
    from executor.graphs.recorder import CudaRecorder
    from executor.graphs.step_graphs import StepGraphs  # imports Triton

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_COLUMNS = 16
"""Kernels are compiled for page tables whose rows are multiples of this, whatever the longest sequence is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """`max_rows` run at once; the cache holds `pages` of `page_size` tokens and host memory `host_pages`; no
    sequence exceeds `max_context`. With `graphs`, a GPU computes all but large steps by CUDA graphs.
    `deterministic`: a request's logits have the same bits whatever else is in the batch, in whatever chunks
    its prompt comes. `max_rank`: of adapters; 0 where there are none, or where no graphs need be made for
    them before they come. `rehearses`: it computes one layer of each kind only, to see what it launches.
    """

    max_rows: int
    pages: int
    page_size: int
    max_context: int
    graphs: bool = True
    host_pages: int = 0
    deterministic: bool = False
    max_rank: int = 0
    rehearses: bool = False


def _ending_what_fails(
    method: "Callable[Concatenate[TorchRunner, Arguments], Result]",
) -> "Callable[Concatenate[TorchRunner, Arguments], Result]":
    """Adapters of a step that has failed may be overwritten, which a part of it may have been launched to
    read.
    """

    @wraps(method)
    def checked(self: "TorchRunner", *args: Arguments.args, **named: Arguments.kwargs) -> Result:
        try:
            return method(self, *args, **named)
        except Exception:
            with suppress(RuntimeError):  # of a device that does nothing any more
                self.settle()
            raise

    return checked


class TorchRunner:
    """Implements `control.runner.Runner`. Owns the KV cache, the page table and the rows' sampling state."""

    def __init__(
        self, model: ModelConfig, parameters: Parameters, *, pool: AdapterPool, config: RunnerConfig
    ) -> None:
        """Computes where the parameters lie, with Triton's kernels where the pool says so."""
        dtype, device = parameters.embed.dtype, parameters.embed.device
        self._cache = KvCache(
            model, pages=config.pages, page_size=config.page_size, dtype=dtype, device=device
        )
        self._host = HostPages(self._cache, pages=config.host_pages) if config.host_pages else None
        self._pool = pool
        self._steps = steps = _fused_steps(pool, config.deterministic)
        self._attention = attention = _attention(model, self._cache, pool, config.deterministic)
        self._decoder = Decoder(
            model,
            parameters,
            cache=self._cache,
            attention=attention,
            adapters=pool.table,
            steps=steps,
            triton=pool.triton,
            max_context=config.max_context,
        )
        if config.rehearses:
            self._decoder.keep_one_of_each_kind()
        self._windows = tuple(set(model.windows))
        columns = -(-config.max_context // (config.page_size * _COLUMNS)) * _COLUMNS
        self._page_table = PageTable(
            rows=config.max_rows, columns=columns, device=device, is_apart=pool.triton
        )
        self._sampler = Sampler(rows=config.max_rows, eos_ids=model.eos_ids)
        # One more than there are: graphs' padding has a row, too.
        self._last_sampled = torch.zeros(config.max_rows + 1, dtype=torch.int64, device=device)
        # Without kernels of our own, tokens by themselves are all that is the same in any batch.
        self._one_by_one = config.deterministic and not pool.triton
        self._prompts = PromptScorer(self._decoder, pool, one_by_one=self._one_by_one)
        self._recorder: CudaRecorder | None = None
        self._graphs = self._record_graphs(config.max_rank) if pool.triton and config.graphs else None
        self._unsampled: PendingStep | None = None

    @_ending_what_fails
    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Apply the plan's changes and compute its logits. Samples the step before, where that is still
        due.
        """
        if self._unsampled is not None:
            self._sample(self._unsampled)
        for install in plan.installs:
            self._install(install)
        if self._host is not None:
            self._host.save(plan.saves)
            self._host.restore(plan.restores)
        self._page_table.update(plan.page_rows, plan.page_columns, plan.page_ids)

        by_slot = plan.slots.argsort(kind="stable")
        spans, sampled, computed = self._compute(plan, by_slot)
        pending = PendingStep(
            step=plan.step,
            logits=computed.logits,
            greedy=computed.tokens,
            rows_on_device=computed.rows,
            is_kept=computed.is_kept,
            rows=spans.rows[sampled],
            positions=(spans.starts + spans.lengths)[sampled],
            order=by_slot[sampled],
            prompts=computed.prompts,
        )
        self._unsampled = pending
        return pending

    @torch.inference_mode()
    def rehearse(self, plan: StepPlan) -> None:
        """Launch what computes a plan's logits, and nothing else."""
        self._compute(plan, np.argsort(plan.slots, kind="stable"))

    def _compute(self, plan: StepPlan, by_slot: np.ndarray) -> "tuple[Spans, np.ndarray, Computed]":
        """The plan's spans in the given order, which of them are sampled, and what comes of them."""
        spans, slots, input_ids = _flatten(plan, by_slot)
        (sampled,) = plan.samples[by_slot].nonzero()
        computed = self._by_graph(spans, slots, input_ids, sampled) or self._forward(
            spans, slots, input_ids, sampled
        )
        return spans, sampled, computed

    def _by_graph(
        self, spans: Spans, slots: np.ndarray, input_ids: np.ndarray, sampled: np.ndarray
    ) -> "Computed | None":
        """Where the step has one, and scores no prompt."""
        if self._graphs is None or self._prompts.owes(spans.rows):
            return None
        computed = self._graphs.compute(spans, slots, input_ids, sampled)
        return None if computed is None else Computed(*computed, is_kept=True)

    def _forward(
        self, spans: Spans, slots: np.ndarray, input_ids: np.ndarray, sampled: np.ndarray
    ) -> "Computed":
        if self._one_by_one:
            return self._forward_one_by_one(spans, slots, input_ids, sampled)
        lora = self._pool.batch(slots, spans.lengths)
        x_TD, chosen = self._run_layers(spans, lora, input_ids, sampled)
        prompts = self._prompts.score(spans, slots, x_TD)
        if len(sampled) < len(input_ids):
            x_TD = x_TD.index_select(0, chosen.tokens)
            lora = self._pool.batch(slots[sampled], np.ones(len(sampled), dtype=np.int64))
        logits = self._decoder.logits(x_TD, lora)
        return Computed(logits, self._steps.greedy(logits), chosen.rows, prompts=prompts)

    def _forward_one_by_one(
        self, spans: Spans, slots: np.ndarray, input_ids: np.ndarray, sampled: np.ndarray
    ) -> "Computed":
        """Each token in a batch of its own, so that every operation has the same shapes for it, always."""
        parts, one = [], np.ones(1, dtype=np.int64)
        loras = [self._pool.batch(slots[i : i + 1], one) for i in range(len(slots))]
        for i, length in enumerate(spans.lengths.tolist()):
            for token in range(length):
                alone = Spans(
                    rows=spans.rows[i : i + 1],
                    starts=spans.starts[i : i + 1] + token,
                    lengths=one,
                    splits=np.array([0, 1]),
                )
                place = int(spans.splits[i]) + token
                parts.append(self._run_layers(alone, loras[i], input_ids[place : place + 1], one[:0])[0])
        x_TD = torch.cat(parts)
        prompts = self._prompts.score(spans, slots, x_TD)
        logits = [
            self._decoder.logits(x_TD[spans.splits[i + 1] - 1 : spans.splits[i + 1]], loras[i])
            for i in sampled.tolist()
        ]
        logits_NV = torch.cat(logits) if logits else x_TD.new_empty(0, self._decoder.config.vocab_size)
        rows = torch.from_numpy(spans.rows[sampled].astype(np.int64))
        return Computed(logits_NV, self._steps.greedy(logits_NV), rows, prompts=prompts)

    def _run_layers(
        self, spans: Spans, lora: LoraBatch, input_ids: np.ndarray, sampled: np.ndarray
    ) -> tuple[Tensor, Sampled]:
        """The residual stream `[T, D]`, and which of its tokens are sampled."""
        self._page_table.send()
        batch, chosen = build_batch(
            spans,
            input_ids=input_ids,
            last_sampled=self._last_sampled,
            sampled=sampled,
            lora=lora,
            page_table=self._page_table,
            page_size=self._cache.page_size,
            attention=self._attention,
            windows=self._windows,
        )
        return self._decoder.forward(batch), chosen

    @_ending_what_fails
    @torch.inference_mode()
    def collect(self, pending: PendingStep) -> StepResult:
        """Wait for the step's tokens, and so for its end; sample them first, where that is still due."""
        if pending.result is not None:
            return pending.result
        sampled = (pending.draw or self._sample(pending)).collect()
        order = pending.order.argsort(kind="stable")
        pending.result = StepResult(
            step=pending.step,
            rows=pending.rows[order],
            token_splits=np.arange(len(order) + 1, dtype=np.int32),
            token_ids=sampled.token_ids[order],
            logprobs=sampled.logprobs[order],
            top=sampled.top,
            prompt_logprobs=tuple(prompt.collect() for prompt in pending.prompts),
        )
        return pending.result

    def settle(self) -> None:
        """Wait for the end of all that was launched."""
        if self._last_sampled.is_cuda:
            torch.cuda.current_stream(self._last_sampled.device).synchronize()

    def rest(self) -> bool:
        """What makes later steps faster, while there are none. Returns whether there was any such thing."""
        return self._graphs is not None and self._graphs.rest()

    @property
    def bytes_to_come(self) -> int:
        """Of the GPU, which graphs that may still be recorded will take."""
        if self._graphs is None or self._recorder is None:
            return 0
        return self._graphs.room * self._recorder.bytes_of_one

    def _record_graphs(self, max_rank: int) -> "StepGraphs":
        from executor.graphs.recorder import CudaRecorder, no_recorder
        from executor.graphs.step_graphs import StepGraphs
        from executor.model.attention_triton import TritonAttention

        assert isinstance(self._attention, TritonAttention)
        self._recorder = CudaRecorder() if self._last_sampled.is_cuda else None
        graphs = StepGraphs(
            self._decoder,
            attention=self._attention,
            steps=self._steps,
            page_table=self._page_table,
            page_size=self._cache.page_size,
            adapters=self._pool.table,
            last_sampled=self._last_sampled,
            record=self._recorder or no_recorder,
            max_rank=max_rank,
        )
        if self._recorder is not None:
            graphs.capture()
        return graphs

    def _install(self, install: RowInstall) -> None:
        self._sampler.install(install.row, install.sampling, install.prompt_ids, install.emitted_ids)
        self._prompts.install(install)

    def _sample(self, pending: PendingStep) -> Draw:
        assert pending is self._unsampled, "steps are sampled once, in the order of their launches"
        assert pending.logits is not None
        self._unsampled = None  # also where sampling fails: the steps after it go on
        pending.draw = draw = self._sampler.sample(
            pending.logits, pending.greedy, pending.rows, pending.positions
        )
        pending.logits = None
        if not (pending.is_kept and draw.is_greedy):
            self._last_sampled.index_copy_(0, pending.rows_on_device, draw.tokens_N)
        return draw


def _flatten(plan: StepPlan, by_slot: np.ndarray) -> tuple[Spans, np.ndarray, np.ndarray]:
    """The plan's rows in the given order: spans, slots and input ids int64[T]."""
    if len(plan.input_ids) == len(by_slot):  # a token each, as in most steps
        lengths, splits = np.ones(len(by_slot), np.int64), np.arange(len(by_slot) + 1)
        moved_from = by_slot
    else:
        lengths = np.diff(plan.query_splits).astype(np.int64)[by_slot]
        splits = np.concatenate(([0], np.cumsum(lengths)))
        firsts = plan.query_splits[:-1][by_slot]
        moved_from = np.repeat(firsts - splits[:-1], lengths) + np.arange(splits[-1])
    spans = Spans(
        rows=plan.rows[by_slot],
        starts=plan.start_positions[by_slot].astype(np.int64),
        lengths=lengths,
        splits=splits,
    )
    return spans, plan.slots[by_slot], plan.input_ids[moved_from].astype(np.int64)


def _fused_steps(pool: AdapterPool, deterministic: bool) -> FusedSteps:
    if pool.triton:
        from kernels.fused import fixed, gpu  # the CPU does without Triton

        return fixed if deterministic else gpu
    return reference


def _attention(model: ModelConfig, cache: KvCache, pool: AdapterPool, deterministic: bool) -> Attention[Any]:
    dtype = pool.table.pool.dtype
    if pool.triton:
        from executor.model.attention_triton import TritonAttention

        return TritonAttention(model, cache, dtype=dtype, deterministic=deterministic)
    return PagedAttention(model, cache, dtype=dtype)
