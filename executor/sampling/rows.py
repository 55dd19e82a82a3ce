"""What the sampler remembers of each running row: its options, and the tokens that penalties count."""

from collections.abc import Sequence

import numpy as np

from executor.control.request import SamplingParams

NO_LOGPROBS = -1


class SamplingTable:
    """Options of all rows as parallel arrays, so that a step gathers them by one index.

    Rows that need more than an argmax are marked in `special`. Tokens are kept only for rows with
    penalties. All host arrays are indexed by row; `outputs` counts the tokens emitted so far.
    """

    def __init__(self, *, rows: int, eos_ids: Sequence[int]) -> None:
        self._eos_ids = tuple(eos_ids)
        self.special = np.zeros(rows, dtype=np.bool_)
        self.temperature = np.zeros(rows, dtype=np.float32)
        self.top_k = np.zeros(rows, dtype=np.int64)
        self.top_p = np.ones(rows, dtype=np.float32)
        self.min_p = np.zeros(rows, dtype=np.float32)
        self.repetition = np.ones(rows, dtype=np.float32)
        self.presence = np.zeros(rows, dtype=np.float32)
        self.frequency = np.zeros(rows, dtype=np.float32)
        self.seed = np.zeros(rows, dtype=np.int64)
        self.min_tokens = np.zeros(rows, dtype=np.int64)
        self.outputs = np.zeros(rows, dtype=np.int64)
        self.logprobs = np.full(rows, NO_LOGPROBS, dtype=np.int64)
        self.bias: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.stops: dict[int, np.ndarray] = {}
        self._history: dict[int, _History] = {}

    def install(
        self, row: int, sampling: SamplingParams, prompt_ids: np.ndarray, emitted_ids: np.ndarray
    ) -> None:
        """Give the row to a request; nothing of the former one stays."""
        self.temperature[row] = sampling.temperature
        self.top_k[row] = sampling.top_k
        self.top_p[row] = sampling.top_p
        self.min_p[row] = sampling.min_p
        self.repetition[row] = sampling.repetition_penalty
        self.presence[row] = sampling.presence_penalty
        self.frequency[row] = sampling.frequency_penalty
        self.seed[row] = np.uint64(sampling.seed).astype(np.int64)
        self.min_tokens[row] = sampling.min_tokens
        self.outputs[row] = len(emitted_ids)
        self.logprobs[row] = NO_LOGPROBS if sampling.logprobs is None else sampling.logprobs
        for sparse in (self.bias, self.stops, self._history):
            sparse.pop(row, None)
        penalised = (
            sampling.repetition_penalty != 1
            or sampling.presence_penalty != 0
            or sampling.frequency_penalty != 0
        )
        if penalised:
            self._history[row] = _History(prompt_ids, emitted_ids)
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias, strict=True)
            self.bias[row] = np.array(ids, dtype=np.int64), np.array(values, dtype=np.float32)
        if sampling.min_tokens:
            stops = (
                sampling.stop_token_ids if sampling.ignore_eos else (*sampling.stop_token_ids, *self._eos_ids)
            )
            self.stops[row] = np.array(sorted(set(stops)), dtype=np.int64)
        self.special[row] = bool(
            sampling.temperature > 0 or penalised or sampling.logit_bias or sampling.min_tokens
        )

    def count(self, rows: np.ndarray) -> "Emissions":
        """Count one more output token of each row; which one it is, `Emissions.record` is told later."""
        self.outputs[rows] += 1
        if not self._history:
            return Emissions(())
        histories = ((i, self._history.get(row)) for i, row in enumerate(rows.tolist()))
        return Emissions(tuple((i, history) for i, history in histories if history is not None))

    def seen(self, row: int) -> np.ndarray:
        """Prompt and output of a row with penalties, int64; empty for other rows."""
        return self._history[row].all() if row in self._history else _NOTHING

    def emitted(self, row: int) -> np.ndarray:
        """Output of a row with penalties, int64; empty for other rows."""
        return self._history[row].output() if row in self._history else _NOTHING

    def suppressed(self, row: int) -> np.ndarray:
        """Tokens that would stop the row before its min_tokens, int64."""
        return self.stops[row] if row in self.stops and self.outputs[row] < self.min_tokens[row] else _NOTHING


_NOTHING = np.empty(0, dtype=np.int64)


class Emissions:
    """Tokens that have been sampled, but may still be on the device.

    It holds the histories themselves: a row that has got another tenant since is not told of them.
    """

    def __init__(self, histories: "tuple[tuple[int, _History], ...]") -> None:
        self._histories = histories

    def record(self, token_ids: np.ndarray) -> None:
        """The tokens of the counted rows, in their order."""
        for i, history in self._histories:
            history.append(int(token_ids[i]))


class _History:
    """A growing array of token ids, prompt first."""

    def __init__(self, prompt_ids: np.ndarray, emitted_ids: np.ndarray) -> None:
        self._ids = np.concatenate((prompt_ids, emitted_ids)).astype(np.int64)
        self._length = len(self._ids)
        self._prompt_length = len(prompt_ids)

    def append(self, token: int) -> None:
        if self._length == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty(max(64, self._length), dtype=np.int64)))
        self._ids[self._length] = token
        self._length += 1

    def all(self) -> np.ndarray:
        return self._ids[: self._length]

    def output(self) -> np.ndarray:
        return self._ids[self._prompt_length : self._length]
