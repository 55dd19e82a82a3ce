"""Chooses one token for each sampled row.

Order of the options: logit bias, suppression of stop tokens before min_tokens, repetition penalty, presence
and frequency penalties; then, unless greedy, temperature, top-k, top-p, min-p and noise. Log probabilities
are those of the raw logits.

Legend: N sampled rows and padding after them, M rows with options, V vocabulary, E entries of a sparse
option.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from executor.control.request import SamplingParams
from executor.sampling import filters
from executor.sampling.logprobs import Scores, score
from executor.sampling.noise import gumbel
from executor.sampling.rows import NO_LOGPROBS, Emissions, SamplingTable
from kernels.transfer import Download, upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Host arrays in the order of the rows given: token_ids int32[N], logprobs float32[N] (0 where not
    asked for).

    `top` maps a row to the ids int32[k] and logprobs float32[k] that it asked for, most probable first.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    top: Mapping[int, tuple[np.ndarray, np.ndarray]]


class Draw:
    """Tokens that have been chosen, on the device: `tokens_N` int64, with the padding that they came with;
    `is_greedy` where options chose none. `collect` waits for them, once.
    """

    def __init__(
        self,
        tokens_N: Tensor,
        is_greedy: bool,
        rows: np.ndarray,
        emissions: Emissions,
        asked: tuple[np.ndarray, np.ndarray],
        scores: Scores | None,
    ) -> None:
        """`asked`: places of the rows that asked for log probabilities, and how many alternatives each."""
        self.tokens_N = tokens_N
        self.is_greedy = is_greedy
        self._rows = rows
        self._emissions = emissions
        self._asked = asked
        self._download = Download(tokens_N, *(scores or ()))

    def collect(self) -> Sampled:
        """The tokens on the host; penalties count them from here on."""
        tokens_N, *scores = self._download.arrays()
        token_ids = tokens_N[: len(self._rows)].astype(np.int32)
        self._emissions.record(token_ids)
        logprobs = np.zeros(len(token_ids), dtype=np.float32)
        top = {}
        if scores:
            places, wanted = self._asked
            logprobs[places], top_ids, top_logprobs = scores
            top = {
                int(self._rows[place]): (top_ids[i, :count], top_logprobs[i, :count])
                for i, (place, count) in enumerate(zip(places.tolist(), wanted.tolist(), strict=True))
                if count > 0
            }
        return Sampled(token_ids=token_ids, logprobs=logprobs, top=top)


class Sampler:
    """Keeps the options of running rows and applies them."""

    def __init__(self, *, rows: int, eos_ids: Sequence[int]) -> None:
        """`rows` running at most; `eos_ids` end a sequence and are suppressed until min_tokens."""
        self._table = SamplingTable(rows=rows, eos_ids=eos_ids)

    def install(
        self, row: int, sampling: SamplingParams, prompt_ids: np.ndarray, emitted_ids: np.ndarray
    ) -> None:
        """Give the row to a request that has emitted `emitted_ids` so far."""
        self._table.install(row, sampling, prompt_ids, emitted_ids)

    def sample(self, logits_NV: Tensor, tokens_N: Tensor, rows: np.ndarray, positions: np.ndarray) -> Draw:
        """Choose a token for each row, and count it as emitted, without waiting for the device.

        logits `[N, V]`, left as they are; tokens int64 `[N]`, the largest logit of each row, overwritten
        where options choose another; rows int[S], for what follows is padding; positions int[S] of the new
        tokens in their sequences, which with the seed decide the noise. A row's former draws must have been
        collected.
        """
        special = np.flatnonzero(self._table.special[rows])
        if 0 < len(special) == len(rows):
            logits_MV = logits_NV[: len(rows)].to(torch.float32, copy=True)
            tokens_N[: len(rows)].copy_(self._choose(logits_MV, rows, positions))
        elif len(special):
            (places,) = upload(logits_NV.device, special)
            logits_MV = logits_NV.index_select(0, places).float()
            chosen_M = self._choose(logits_MV, rows[special], positions[special])
            tokens_N.index_copy_(0, places, chosen_M)
        wanted = self._table.logprobs[rows]
        asked = np.flatnonzero(wanted != NO_LOGPROBS)
        scores = None
        if len(asked):
            (places,) = upload(logits_NV.device, asked)
            scores = score(
                logits_NV.index_select(0, places).float(),
                tokens_N.index_select(0, places),
                int(wanted.max()),
            )
        emissions = self._table.count(rows)
        return Draw(tokens_N, not len(special), rows, emissions, (asked, wanted[asked]), scores)

    def _choose(self, logits_MV: Tensor, rows: np.ndarray, positions: np.ndarray) -> Tensor:
        """Tokens of rows with options. Overwrites their logits."""
        self._adjust(logits_MV, rows)
        random = np.flatnonzero(self._table.temperature[rows] > 0)
        if 0 < len(random) == len(rows):
            return self._draw(logits_MV, rows, positions)
        tokens_M = logits_MV.argmax(dim=-1)
        if len(random):
            (places,) = upload(logits_MV.device, random)
            drawn = self._draw(logits_MV.index_select(0, places), rows[random], positions[random])
            tokens_M.index_copy_(0, places, drawn)
        return tokens_M

    def _adjust(self, logits_MV: Tensor, rows: np.ndarray) -> None:
        """Bias, suppression and penalties, for greedy and random rows alike."""
        table, device = self._table, logits_MV.device
        if any(row in table.bias for row in rows.tolist()):
            entries = _entries(rows, lambda row: table.bias[row][0] if row in table.bias else _NO_TOKENS)
            values = np.concatenate([table.bias[row][1] for row in rows.tolist() if row in table.bias])
            filters.add_bias(logits_MV, *upload(device, *entries, values))
        entries = _entries(rows, table.suppressed)
        if len(entries[1]):
            filters.suppress(logits_MV, *upload(device, *entries))
        for penalties, neutral, tokens_of, penalise in (
            (table.repetition, 1, table.seen, filters.penalise_repetition),
            (table.presence, 0, table.emitted, filters.penalise_presence),
            (table.frequency, 0, table.emitted, filters.penalise_frequency),
        ):
            penalty = penalties[rows]
            if (penalty != neutral).any():
                penalise(logits_MV, *upload(device, *_entries(rows, tokens_of), penalty))

    def _draw(self, logits_MV: Tensor, rows: np.ndarray, positions: np.ndarray) -> Tensor:
        """Sample rows with a temperature."""
        table, vocab_size = self._table, logits_MV.shape[1]
        temperature_M, top_k_M, top_p_M, min_p_M, seed_M, positions_M = upload(
            logits_MV.device,
            table.temperature[rows],
            table.top_k[rows],
            table.top_p[rows],
            table.min_p[rows],
            table.seed[rows],
            positions.astype(np.int64),
        )
        filters.heat(logits_MV, temperature_M)
        limits = table.top_k[rows]
        limits = limits[(limits > 0) & (limits < vocab_size)]
        if len(limits):
            filters.keep_top_k(logits_MV, top_k_M, largest=int(limits.max()))
        if (table.top_p[rows] < 1).any():
            filters.keep_top_p(logits_MV, top_p_M)
        if (table.min_p[rows] > 0).any():
            filters.keep_min_p(logits_MV, min_p_M)
        if logits_MV.is_cuda:
            from kernels.sampling.gpu import draw  # the CPU does without Triton

            return draw(logits_MV, seed_M, positions_M)
        return logits_MV.add_(gumbel(seed_M, positions_M, vocab_size)).argmax(dim=-1)


_NO_TOKENS = np.empty(0, dtype=np.int64)


def _entries(rows: np.ndarray, tokens_of: Callable[[int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each row's tokens as entries: index into `rows` and token, int64[E]."""
    tokens = [tokens_of(row) for row in rows.tolist()]
    return np.repeat(np.arange(len(rows)), [len(ids) for ids in tokens]), np.concatenate(tokens)
