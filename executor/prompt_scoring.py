"""Log probabilities of prompts, for the rows that asked for them, chunk by chunk."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from executor.control.plan import PromptLogprobs, RowInstall
from executor.model.attention import Spans
from executor.model.decoder import Decoder
from executor.model.slots import AdapterPool
from executor.sampling.logprobs import Scores, score
from kernels.transfer import Download, upload

# Logits of prompt tokens are computed this many rows at a time, to bound their memory.
_PROMPT_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt:
    """Scores of a row's prompt tokens from position `start` on, on their way to the host."""

    row: int
    start: int
    scores: Download

    def collect(self) -> PromptLogprobs:
        logprobs, top_ids, top_logprobs = self.scores.arrays()
        return PromptLogprobs(
            row=self.row, start=self.start, logprobs=logprobs, top_ids=top_ids, top_logprobs=top_logprobs
        )


class PromptScorer:
    """Remembers which rows still owe scores of their prompt."""

    def __init__(self, decoder: Decoder, pool: AdapterPool, *, one_by_one: bool = False) -> None:
        """`one_by_one`: the logits of each token by themselves."""
        self._block = 1 if one_by_one else _PROMPT_BLOCK
        self._decoder = decoder
        self._pool = pool
        self._owed: dict[int, _Owed] = {}

    def owes(self, rows: np.ndarray) -> bool:
        """Whether one of the rows int[R] still owes scores."""
        return bool(self._owed) and not self._owed.keys().isdisjoint(rows.tolist())

    def install(self, install: RowInstall) -> None:
        """Give the row to a request; nothing of the former one stays."""
        self._owed.pop(install.row, None)
        top = install.sampling.prompt_logprobs
        # Once tokens have been emitted, the prompt has been scored.
        if top is not None and not len(install.emitted_ids):
            self._owed[install.row] = _Owed(prompt_ids=install.prompt_ids.astype(np.int64), top=top)

    def score(self, spans: Spans, slots: np.ndarray, x_TD: Tensor) -> tuple[ScoredPrompt, ...]:
        """Log probabilities of the prompt tokens that follow this step's tokens."""
        if not self._owed:
            return ()
        scored: list[ScoredPrompt] = []
        for i, row in enumerate(spans.rows.tolist()):
            owed = self._owed.get(row)
            if owed is None:
                continue
            start = int(spans.starts[i]) + 1
            targets = owed.prompt_ids[start : start + int(spans.lengths[i])]
            if len(targets):
                first = int(spans.splits[i])
                x_ND = x_TD[first : first + len(targets)]
                scores = self._score(x_ND, targets, slots[i], owed.top)
                scored.append(ScoredPrompt(row=row, start=start, scores=Download(*scores)))
            if start + len(targets) >= len(owed.prompt_ids):
                del self._owed[row]
        return tuple(scored)

    def _score(self, x_ND: Tensor, targets: np.ndarray, slot: int, top: int) -> Scores:
        (targets_N,) = upload(x_ND.device, targets)
        parts = []
        for x_BD, targets_B in zip(x_ND.split(self._block), targets_N.split(self._block), strict=True):
            lora = self._pool.batch(np.array([slot]), np.array([len(x_BD)]))
            parts.append(score(self._decoder.logits(x_BD, lora).float(), targets_B, top))
        return Scores.joined(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owed:
    """A prompt's ids int64[P] and how many alternatives to each."""

    prompt_ids: np.ndarray
    top: int
