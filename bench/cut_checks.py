"""What must hold of top-k and top-p on a GPU: what is kept, in a vocabulary of usual size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.sampling.cut import keep_top_k, keep_top_p

_ROWS, _VOCABULARY = 64, 151_936
_ROUNDING = 2e-6
"""By how much sums in float32 may miss the limit of top-p."""


def run_all() -> Iterator[tuple[str, torch.dtype, float]]:
    """Name, dtype and, of each case, the largest share of a row's probability that was cut wrongly."""
    for spread in (0.02, 1.0, 4.0):
        logits_NV = torch.randn(_ROWS, _VOCABULARY, device="cuda") * spread
        logits_NV[::2] = logits_NV[::2].bfloat16().float()  # many ties
        logits_NV[::5, 1000:] = float("-inf")
        for k in (1, 40, 3000):
            yield f"top-k {k}, spread {spread}", torch.float32, _by_count(logits_NV, k)
        for p in (0.1, 0.9, 0.999):
            yield f"top-p {p}, spread {spread}", torch.float32, _by_mass(logits_NV, p)


def _by_count(logits_NV: Tensor, k: int) -> float:
    cut_NV = logits_NV.clone()
    keep_top_k(cut_NV, torch.full((_ROWS,), k, device="cuda"))
    least_N1 = logits_NV.topk(k, dim=-1).values[:, -1:]
    return _wrong(logits_NV, cut_NV, logits_NV >= least_N1, logits_NV >= least_N1)


def _by_mass(logits_NV: Tensor, p: float) -> float:
    cut_NV = logits_NV.clone()
    keep_top_p(cut_NV, torch.full((_ROWS,), p, device="cuda"))
    sorted_NV = logits_NV.sort(dim=-1, descending=True).values
    probability_NV = sorted_NV.double().softmax(-1)
    before_NV = probability_NV.cumsum(-1) - probability_NV
    kept = []
    for limit in (p - _ROUNDING, p + _ROUNDING):
        last_N1 = (before_NV < limit).sum(-1, keepdim=True) - 1
        kept.append(logits_NV >= sorted_NV.gather(1, last_N1))
    return _wrong(logits_NV, cut_NV, *kept)


def _wrong(logits_NV: Tensor, cut_NV: Tensor, fewest_NV: Tensor, most_NV: Tensor) -> float:
    kept_NV = cut_NV > float("-inf")
    if not torch.equal(cut_NV, logits_NV.masked_fill(~kept_NV, float("-inf"))):
        return float("inf")
    wrong_NV = (fewest_NV & ~kept_NV | kept_NV & ~most_NV) & (logits_NV > float("-inf"))
    return (logits_NV.double().softmax(-1) * wrong_NV).sum(-1).max().item()
