"""A step between its launch and its tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from executor.control.plan import StepResult
from executor.prompt_scoring import ScoredPrompt
from executor.sampling.sampler import Draw


@dataclass(slots=True, kw_only=True, eq=False)
class PendingStep:
    """A forward whose rows wait to be sampled; `draw` once they are, `result` once the host has them.

    `logits` is `[N, V]`, greedy their argmax and rows_on_device both int64 `[N]`, padding after the first S;
    rows int32[S], positions int64[S] and order (each row's place in the plan's order) are the host's.
    `is_kept`: the rows' next step will read `greedy`, unless options choose something else.
    """

    step: int
    logits: Tensor | None
    greedy: Tensor
    rows_on_device: Tensor
    is_kept: bool
    rows: np.ndarray
    positions: np.ndarray
    order: np.ndarray
    prompts: tuple[ScoredPrompt, ...]
    draw: Draw | None = None
    result: StepResult | None = None


class Computed(NamedTuple):
    """What a forward leaves for the sampler, as in `PendingStep`."""

    logits: Tensor
    tokens: Tensor
    rows: Tensor
    is_kept: bool = False
    prompts: tuple[ScoredPrompt, ...] = ()
