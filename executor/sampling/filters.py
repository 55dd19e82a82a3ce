"""What sampling options do to logits, each a function over all rows at once. All change `logits_NV` in place.

Sparse options come as entries: entry e concerns token `tokens_E[e]` of row `rows_E[e]`, both int64. None of
the functions makes the host wait for a GPU.

Legend: N rows, V vocabulary, E entries.
"""

import numpy as np
import torch
from torch import Tensor

_REMOVED = float("-inf")


def add_bias(logits_NV: Tensor, rows_E: Tensor, tokens_E: Tensor, bias_E: Tensor) -> None:
    """Add a float32 bias to single tokens."""
    _add(logits_NV, rows_E, tokens_E, bias_E)


def suppress(logits_NV: Tensor, rows_E: Tensor, tokens_E: Tensor) -> None:
    """Make tokens impossible."""
    logits_NV.index_put_((rows_E, tokens_E), logits_NV.new_full((), _REMOVED))


def penalise_repetition(logits_NV: Tensor, rows_E: Tensor, tokens_E: Tensor, penalty_N: Tensor) -> None:
    """Divide positive and multiply negative logits of seen tokens by `penalty_N` (CTRL, Keskar et al. 2019).

    An entry for each seen token; one that appears many times counts once.
    """
    seen_E, penalty_E = logits_NV[rows_E, tokens_E], penalty_N[rows_E]
    logits_NV[rows_E, tokens_E] = torch.where(seen_E > 0, seen_E / penalty_E, seen_E * penalty_E)


def penalise_presence(logits_NV: Tensor, rows_E: Tensor, tokens_E: Tensor, penalty_N: Tensor) -> None:
    """Subtract `penalty_N` from each token that appears, however often."""
    logits_NV[rows_E, tokens_E] = logits_NV[rows_E, tokens_E] - penalty_N[rows_E]


def penalise_frequency(logits_NV: Tensor, rows_E: Tensor, tokens_E: Tensor, penalty_N: Tensor) -> None:
    """Subtract `penalty_N` once for each time that a token appears."""
    # In whatever order: all entries of a token are the same number.
    _add(logits_NV, rows_E, tokens_E, -penalty_N[rows_E])


def _add(logits_NV: Tensor, rows_E: Tensor, tokens_E: Tensor, values_E: Tensor) -> None:
    # Putting with accumulation sorts the entries, and may wait for the GPU to do so.
    logits_NV.view(-1).index_add_(0, rows_E * logits_NV.shape[1] + tokens_E, values_E)


def heat(logits_NV: Tensor, temperature_N: Tensor) -> None:
    """Divide by the temperature (positive); each row's largest becomes 0, so that nothing overflows."""
    logits_NV.sub_(logits_NV.amax(dim=-1, keepdim=True)).div_(temperature_N[:, None])


def keep_top_k(logits_NV: Tensor, k_N: Tensor, largest: int) -> None:
    """Keep the k largest of each row and what ties with the last of them. `k_N` int64; 0 or V and more keep
    all; none is above `largest`, which the host knows without waiting for the device.
    """
    if logits_NV.is_cuda:
        from kernels.sampling import cut  # the CPU does without Triton

        cut.keep_top_k(logits_NV, k_N)
        return
    vocab_size = logits_NV.shape[1]
    limited_N = (k_N > 0) & (k_N < vocab_size)
    top_NK = logits_NV.topk(max(1, min(largest, vocab_size)), dim=-1).values
    threshold_N1 = top_NK.gather(1, torch.where(limited_N, k_N - 1, 0)[:, None])
    logits_NV.masked_fill_((logits_NV < threshold_N1) & limited_N[:, None], _REMOVED)


def keep_top_p(logits_NV: Tensor, p_N: Tensor) -> None:
    """Keep each row's smallest set of most probable tokens that holds at least `p_N` of the probability, and
    what ties with the last of them.

    Nucleus sampling (Holtzman et al. 2020). 1 keeps all; one token always stays.
    """
    if logits_NV.is_cuda:
        from kernels.sampling import cut

        cut.keep_top_p(logits_NV, p_N)
        return
    # torch sorts indices along; numpy, without them, takes a fourteenth of the time.
    sorted_NV = torch.from_numpy(np.sort(logits_NV.numpy(), axis=-1)).flip(-1)
    probabilities_NV = sorted_NV.softmax(dim=-1)
    before_NV = probabilities_NV.cumsum(dim=-1) - probabilities_NV
    kept_N1 = (before_NV < p_N[:, None]).sum(dim=-1, keepdim=True).clamp_(min=1)
    threshold_N1 = sorted_NV.gather(1, kept_N1 - 1)
    logits_NV.masked_fill_((logits_NV < threshold_N1) & (p_N < 1)[:, None], _REMOVED)


def keep_min_p(logits_NV: Tensor, min_p_N: Tensor) -> None:
    """Keep tokens at least `min_p_N` times as probable as the row's most probable one."""
    threshold_N1 = logits_NV.amax(dim=-1, keepdim=True) + min_p_N.log()[:, None]
    logits_NV.masked_fill_(logits_NV < threshold_N1, _REMOVED)
