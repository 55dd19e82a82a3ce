"""A manifest by column: adapters of experts have thousands of slices, which one by one would take the
interpreter from the engine for as long as a step.
"""

from typing import NamedTuple

import numpy as np

from lorikeet.v1 import layout_pb2

PARTS = ("a", "b", "magnitude", "lora_bias", "bias", "shift", "weight")
"""What a slice may have in a pack; the columns of `Placements.offsets`."""

# Beyond every pack; what lies farther is put here.
_FAR = 1 << 62


class Placements(NamedTuple):
    """Of M slices: index in the layout, rank and padded rank, int64 `[M]`; scaling, float32 `[M]`; and where
    each of PARTS begins in the pack, in bytes, int64 `[M, 7]`, -1 where there is none.
    """

    slices: np.ndarray
    ranks: np.ndarray
    padded_ranks: np.ndarray
    scaling: np.ndarray
    offsets: np.ndarray

    @property
    def is_plain(self) -> bool:
        """Whether every slice has a LoRA and nothing beside it."""
        return bool((self.ranks > 0).all() and (self.offsets[:, 2:] < 0).all())

    def has(self, part: str) -> np.ndarray:
        """Which slices have a part: bool `[M]`."""
        return self.offset(part) >= 0

    def offset(self, part: str) -> np.ndarray:
        """Where it begins: int64 `[M]`."""
        return self.offsets[:, PARTS.index(part)]


def placements_of(manifest: layout_pb2.PackManifest) -> Placements:
    lines: list[tuple[int, ...]] = []
    scaling: list[float] = []
    for place in manifest.slices:
        rank, has = place.rank, place.HasField
        lines.append(
            (
                place.slice,
                rank,
                place.padded_rank,
                place.a_offset if rank else -1,
                place.b_offset if rank else -1,
                place.magnitude_offset if has("magnitude_offset") else -1,
                place.lora_bias_offset if has("lora_bias_offset") else -1,
                place.bias_offset if has("bias_offset") else -1,
                place.shift_offset if has("shift_offset") else -1,
                place.weight_offset if has("weight_offset") else -1,
            )
        )
        scaling.append(place.scaling)
    try:
        columns = np.array(lines, np.int64)
    except OverflowError:
        columns = np.array([[min(value, _FAR) for value in line] for line in lines], np.int64)
    columns = columns.reshape(len(lines), 3 + len(PARTS))
    return Placements(
        slices=columns[:, 0],
        ranks=columns[:, 1],
        padded_ranks=columns[:, 2],
        scaling=np.array(scaling, np.float32),
        offsets=columns[:, 3:],
    )
