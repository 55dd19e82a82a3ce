"""What passes between scheduler and runner: flat arrays.

R rows scheduled in the step, T tokens fed to the model, K changes of the page table, S rows sampled, N
tokens sampled. A row is an index into the table of running sequences; it stays the same from install to
release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from executor.control.request import Float32Array, Int32Array, SamplingParams, no_ids

LAST_SAMPLED = -1
BASE_SLOT = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowInstall:
    """A row gets a new tenant, before the step's forward.

    The runner resets the row's state: sampling parameters, seed, penalty counts (prompt_ids int32[P] as
    prompt, emitted_ids int32[E] as output). After a preemption the same request comes again, with the
    tokens emitted so far.
    """

    row: int
    sampling: SamplingParams
    prompt_ids: Int32Array
    emitted_ids: Int32Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageCopies:
    """KV pages to be copied between the cache and host memory: sources and targets int32[K], ids on their
    sides.
    """

    sources: Int32Array
    targets: Int32Array

    def __len__(self) -> int:
        return len(self.sources)


NO_COPIES = PageCopies(sources=no_ids(), targets=no_ids())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepPlan:
    """One forward and the sampling after it.

    rows int32[R]: scheduled rows, each once. query_splits int32[R + 1]: offsets into input_ids. input_ids
    int32[T]: token ids; -1 is the id that the row sampled last, which may still be on the device.
    start_positions int32[R]: tokens of the row in KV before this step. slots int32[R]: adapter slot, -1 the
    base. samples bool[R]: the logits of the row's last token are sampled. page_rows, page_columns, page_ids
    int32[K]: to be written before the forward, `page_table[page_rows, page_columns] = page_ids`; an entry may
    come twice, but with one id. saves: pages copied to host memory before anything else; restores: pages
    copied back after that, before the forward.
    """

    step: int
    installs: tuple[RowInstall, ...]
    rows: Int32Array
    query_splits: Int32Array
    input_ids: Int32Array
    start_positions: Int32Array
    slots: Int32Array
    samples: NDArray[np.bool_]
    page_rows: Int32Array
    page_columns: Int32Array
    page_ids: Int32Array
    saves: PageCopies = NO_COPIES
    restores: PageCopies = NO_COPIES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptLogprobs:
    """Log probabilities of a row's prompt tokens at positions [start, start + n); position 0 has none.

    logprobs float32[n]; top_ids int32[n, k] and top_logprobs float32[n, k], most probable first.
    """

    row: int
    start: int
    logprobs: Float32Array
    top_ids: Int32Array
    top_logprobs: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """What a step computed.

    rows int32[S]: the sampled rows in the plan's order. token_splits int32[S + 1]: offsets into token_ids
    int32[N] and logprobs float32[N] (of the raw logits); today one token a row. top: for rows that asked,
    the ids int32[k] and logprobs float32[k] of the most probable tokens. prompt_logprobs: for rows that
    asked and had prompt tokens in this step.
    """

    step: int
    rows: Int32Array
    token_splits: Int32Array
    token_ids: Int32Array
    logprobs: Float32Array
    top: Mapping[int, tuple[Int32Array, Float32Array]] = field(default_factory=dict)
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
