"""Chooses one token for each sampled row.

Order of the options: logit bias, suppression of stop tokens before min_tokens, repetition penalty, presence
and frequency penalties; then, unless greedy, temperature, top-k, top-p, min-p and noise. Log probabilities
are those of the raw logits.

Legend: N sampled rows, M of them with options, V vocabulary, E entries of a sparse option.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from executor.control.request import SamplingParams
from executor.sampling import filters
from executor.sampling.logprobs import score
from executor.sampling.noise import gumbel
from executor.sampling.rows import NO_LOGPROBS, RowTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Host arrays in the order of the rows given: token_ids int32[N], logprobs float32[N] (0 where not
    asked for).

    `top` maps a row to the ids int32[k] and logprobs float32[k] that it asked for, most probable first.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    top: Mapping[int, tuple[np.ndarray, np.ndarray]]


class Sampler:
    """Keeps the options of running rows and applies them."""

    def __init__(self, *, rows: int, eos_ids: Sequence[int]) -> None:
        """`rows` running at most; `eos_ids` end a sequence and are suppressed until min_tokens."""
        self._table = RowTable(rows=rows, eos_ids=eos_ids)

    def install(
        self, row: int, sampling: SamplingParams, prompt_ids: np.ndarray, emitted_ids: np.ndarray
    ) -> None:
        """Give the row to a request that has emitted `emitted_ids` so far."""
        self._table.install(row, sampling, prompt_ids, emitted_ids)

    def sample(self, logits_NV: Tensor, rows: np.ndarray, positions: np.ndarray) -> Sampled:
        """Choose a token for each row, and count it as emitted.

        logits float32 `[N, V]`, left as they are; rows int[N]; positions int[N] of the new tokens in their
        sequences, which with the seed decide the noise.
        """
        tokens_N = logits_NV.argmax(dim=-1)
        special = np.flatnonzero(self._table.special[rows])
        if len(special):
            places = torch.from_numpy(special).to(logits_NV.device)
            chosen_M = self._choose(logits_NV.index_select(0, places), rows[special], positions[special])
            tokens_N.index_copy_(0, places, chosen_M)
        token_ids = tokens_N.int().cpu().numpy()
        logprobs, top = self._logprobs(logits_NV, tokens_N, rows)
        self._table.record(rows, token_ids)
        return Sampled(token_ids=token_ids, logprobs=logprobs, top=top)

    def _choose(self, logits_MV: Tensor, rows: np.ndarray, positions: np.ndarray) -> Tensor:
        self._adjust(logits_MV, rows)
        tokens_M = logits_MV.argmax(dim=-1)
        random = np.flatnonzero(self._table.temperature[rows] > 0)
        if len(random):
            places = torch.from_numpy(random).to(logits_MV.device)
            drawn = self._draw(logits_MV.index_select(0, places), rows[random], positions[random])
            tokens_M.index_copy_(0, places, drawn)
        return tokens_M

    def _adjust(self, logits_MV: Tensor, rows: np.ndarray) -> None:
        """Bias, suppression and penalties, for greedy and random rows alike."""
        table, device = self._table, logits_MV.device
        if any(row in table.bias for row in rows.tolist()):
            entry_rows, tokens = _entries(
                rows, lambda row: table.bias[row][0] if row in table.bias else _NO_TOKENS
            )
            values = np.concatenate([table.bias[row][1] for row in rows.tolist() if row in table.bias])
            bias = torch.from_numpy(values).to(device)
            filters.add_bias(logits_MV, entry_rows.to(device), tokens.to(device), bias)
        entry_rows, tokens = _entries(rows, table.suppressed)
        if len(tokens):
            filters.suppress(logits_MV, entry_rows.to(device), tokens.to(device))
        for penalties, neutral, tokens_of, penalise in (
            (table.repetition, 1, table.seen, filters.penalise_repetition),
            (table.presence, 0, table.emitted, filters.penalise_presence),
            (table.frequency, 0, table.emitted, filters.penalise_frequency),
        ):
            penalty = penalties[rows]
            if (penalty != neutral).any():
                entry_rows, tokens = _entries(rows, tokens_of)
                penalise(
                    logits_MV, entry_rows.to(device), tokens.to(device), torch.from_numpy(penalty).to(device)
                )

    def _draw(self, logits_MV: Tensor, rows: np.ndarray, positions: np.ndarray) -> Tensor:
        """Sample rows with a temperature."""
        table, device = self._table, logits_MV.device

        def gathered(column: np.ndarray) -> Tensor:
            return torch.from_numpy(column[rows]).to(device)

        filters.heat(logits_MV, gathered(table.temperature))
        if (table.top_k[rows] > 0).any():
            filters.keep_top_k(logits_MV, gathered(table.top_k))
        if (table.top_p[rows] < 1).any():
            filters.keep_top_p(logits_MV, gathered(table.top_p))
        if (table.min_p[rows] > 0).any():
            filters.keep_min_p(logits_MV, gathered(table.min_p))
        positions_M = torch.from_numpy(positions.astype(np.int64)).to(device)
        return logits_MV.add_(gumbel(gathered(table.seed), positions_M, logits_MV.shape[1])).argmax(dim=-1)

    def _logprobs(
        self, logits_NV: Tensor, tokens_N: Tensor, rows: np.ndarray
    ) -> tuple[np.ndarray, dict[int, tuple[np.ndarray, np.ndarray]]]:
        logprobs = np.zeros(len(rows), dtype=np.float32)
        wanted = self._table.logprobs[rows]
        asked = np.flatnonzero(wanted != NO_LOGPROBS)
        if not len(asked):
            return logprobs, {}
        places = torch.from_numpy(asked).to(logits_NV.device)
        scores = score(logits_NV.index_select(0, places), tokens_N.index_select(0, places), int(wanted.max()))
        logprobs[asked] = scores.logprobs
        top = {
            int(rows[place]): (scores.top_ids[i, : wanted[place]], scores.top_logprobs[i, : wanted[place]])
            for i, place in enumerate(asked.tolist())
            if wanted[place] > 0
        }
        return logprobs, top


_NO_TOKENS = np.empty(0, dtype=np.int64)


def _entries(rows: np.ndarray, tokens_of: Callable[[int], np.ndarray]) -> tuple[Tensor, Tensor]:
    """Each row's tokens as entries: index into `rows` and token, int64[E]."""
    tokens = [tokens_of(row) for row in rows.tolist()]
    entry_rows = np.repeat(np.arange(len(rows)), [len(ids) for ids in tokens])
    return torch.from_numpy(entry_rows), torch.from_numpy(np.concatenate(tokens))
