"""A batch's segments as kernels read them: tiles of consecutive tokens of one slot."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kernels.transfer import upload

BLOCKS = (16, 32, 64)
BLOCK = BLOCKS[0]
"""Of tiles in a fixed order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tiles:
    """N tiles of at most `block` tokens. Running example: slots (0, 3), splits (2, 5, 6), `block` 2 (were it
    that small) make places [[0, 0, 3], [2, 4, 5], [2, 1, 1]].

    places int32 `[3, N]`: slot, first token, number of tokens (0 makes a tile that does nothing). `rank` is
    the largest padded rank among the slots.
    """

    places: Tensor
    block: int
    rank: int

    @property
    def count(self) -> int:
        return self.places.shape[1]

    @classmethod
    def cut(
        cls,
        slots: tuple[int, ...],
        splits: tuple[int, ...],
        *,
        rank: int,
        like: Tensor,
        fixed_order: bool = False,
    ) -> "Tiles":
        """Tiles of segments, on the device of `like`."""
        places, block = cut(slots, splits, blocks=BLOCKS[:1] if fixed_order else BLOCKS)
        (sent,) = upload(like.device, places)
        return cls(places=sent, block=block, rank=rank)


def cut(
    slots: tuple[int, ...], splits: tuple[int, ...], *, blocks: tuple[int, ...] = BLOCKS
) -> tuple[np.ndarray, int]:
    """The places of tiles that cover segments, int32 `[3, N]`, and their block: the least of `blocks` that
    holds the longest segment, or the last.
    """
    lengths = np.diff(splits)
    longest = lengths.max()
    block = next((block for block in blocks if longest <= block), blocks[-1])
    per_segment = -(-lengths // block)
    segment = np.repeat(np.arange(len(lengths)), per_segment)
    first = np.concatenate(([0], np.cumsum(per_segment)))[:-1]
    offsets = (np.arange(len(segment)) - first[segment]) * block
    places = np.stack(
        (
            np.array(slots)[segment],
            np.array(splits[:-1])[segment] + offsets,
            np.minimum(lengths[segment] - offsets, block),
        )
    )
    return places.astype(np.int32), block


def cut_tokens(slots_T: np.ndarray, block: int) -> np.ndarray:
    """The places of tiles of at most `block` tokens, int32 `[3, N]`, for tokens sorted by slot; those of the
    base, which come first, have none.
    """
    changes = (slots_T[1:] != slots_T[:-1]).nonzero()[0] + 1
    segment_T = np.zeros(len(slots_T), dtype=np.int64)  # where each token's segment begins
    segment_T[changes] = changes
    np.maximum.accumulate(segment_T, out=segment_T)
    (first,) = ((np.arange(len(slots_T)) - segment_T) % block == 0).nonzero()
    slots = slots_T[first]
    of_base = np.count_nonzero(slots < 0)
    first = first[of_base:]
    places = np.empty((3, len(first)), dtype=np.int32)
    places[0], places[1] = slots[of_base:], first
    places[2, :-1] = first[1:] - first[:-1]
    places[2, -1:] = len(slots_T) - first[-1:]
    return places
