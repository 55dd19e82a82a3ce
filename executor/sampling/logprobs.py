"""Log probabilities of tokens and of their most probable alternatives, from raw logits.

Legend: N rows, V vocabulary, K alternatives.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Host arrays: logprobs float32[N]; top_ids int32[N, K] and top_logprobs float32[N, K], most probable
    first.
    """

    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray


def score(logits_NV: Tensor, targets_N: Tensor, alternatives: int) -> Scores:
    """Log probabilities of `targets_N` (int64) and of each row's `alternatives` most probable tokens."""
    total_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
    chosen_N = (logits_NV.gather(1, targets_N[:, None]) - total_N1).squeeze(1)
    top = logits_NV.topk(min(alternatives, logits_NV.shape[1]), dim=-1)
    return Scores(
        logprobs=chosen_N.cpu().numpy(),
        top_ids=top.indices.int().cpu().numpy(),
        top_logprobs=(top.values - total_N1).cpu().numpy(),
    )
