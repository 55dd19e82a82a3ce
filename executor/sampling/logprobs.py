"""Log probabilities of tokens and of their most probable alternatives, from raw logits.

Legend: N rows, V vocabulary, K alternatives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """logprobs float32 `[N]`; top_ids int32 and top_logprobs float32 `[N, K]`, most probable first."""

    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    @staticmethod
    def joined(parts: "Sequence[Scores]") -> "Scores":
        """Rows of all parts, one after another."""
        return Scores(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def score(logits_NV: Tensor, targets_N: Tensor, alternatives: int) -> Scores:
    """Log probabilities of `targets_N` (int64) and of each row's `alternatives` most probable tokens."""
    total_N1 = _logsumexp(logits_NV)[:, None]
    top = logits_NV.topk(min(alternatives, logits_NV.shape[1]), dim=-1)
    return Scores(
        logprobs=(logits_NV.gather(1, targets_N[:, None]) - total_N1).squeeze(1),
        top_ids=top.indices.int(),
        top_logprobs=top.values - total_N1,
    )


def _logsumexp(logits_NV: Tensor) -> Tensor:
    if not logits_NV.is_cuda:
        return logits_NV.logsumexp(dim=-1)
    from kernels.sampling.gpu import logsumexp  # the CPU does without Triton

    return logsumexp(logits_NV)
