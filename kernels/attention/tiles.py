"""How a batch's queries are cut into tiles, each of consecutive queries of one row."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryTiles:
    """N tiles of at most `queries` queries each.

    places int32 `[4, N]`: row of the page table, first token of the batch, that token's position in its
    sequence, number of queries (0 makes a tile that writes nothing).
    """

    places: Tensor
    queries: int

    @property
    def count(self) -> int:
        return self.places.shape[1]


def cut(
    rows: np.ndarray, tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, queries: int
) -> np.ndarray:
    """The places of tiles that cover spans of tokens: int32 `[4, N]`.

    Span i is `lengths[i]` tokens of row `rows[i]`, from token `tokens[i]` of the batch and position
    `starts[i]`.
    """
    if not len(rows):
        return np.empty((4, 0), dtype=np.int32)
    per_span = -(-lengths // queries)
    span = np.repeat(np.arange(len(lengths)), per_span)
    first = np.concatenate(([0], np.cumsum(per_span)))[:-1]
    offsets = (np.arange(len(span)) - first[span]) * queries
    return np.stack(
        (
            rows[span],
            tokens[span] + offsets,
            starts[span] + offsets,
            np.minimum(lengths[span] - offsets, queries),
        )
    ).astype(np.int32)
