"""LoRA in plain torch: two matrix products per segment and slice. Semantics: those of `reference`.

Legend: T tokens, G tokens of one segment, K in features, N out features, R rank, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.lora.batch import LoraBatch, PackedSlice
from kernels.lora.table import LoraWeights, SlotTable


def apply(
    y_TN: Tensor, x_TK: Tensor, *, slices: Sequence[PackedSlice], batch: LoraBatch, table: SlotTable
) -> None:
    """Shrink and expand each segment through its own adapter, adding to y in place."""
    for segment, slot in enumerate(batch.slots):
        x_GK = y_GN = None
        for index, start, stop in slices:
            weights = table.weights(slot, index)
            if weights is None:
                continue
            if x_GK is None or y_GN is None:
                first, last = batch.splits[segment], batch.splits[segment + 1]
                x_GK, y_GN = x_TK[first:last].float(), y_TN[first:last]
            rank_GR = x_GK @ weights.a.float().t()
            _expand(y_GN if len(slices) == 1 else y_GN[:, start:stop], rank_GR, weights)


def embed(y_TD: Tensor, ids_T: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable) -> None:
    """Look each segment's tokens up in its own adapter's lora_a and expand, adding to y in place."""
    for segment, slot in enumerate(batch.slots):
        weights = table.weights(slot, slice_index)
        if weights is not None:
            first, last = batch.splits[segment], batch.splits[segment + 1]
            rank_GR = weights.a.index_select(0, ids_T[first:last]).float()
            _expand(y_TD[first:last], rank_GR, weights)


def _expand(y_GN: Tensor, rank_GR: Tensor, weights: LoraWeights) -> None:
    """y += (scaling * rank) @ lora_b.T; `rank_GR` is ours to overwrite."""
    rank_GR.mul_(weights.scaling)
    if y_GN.dtype == torch.float32:
        y_GN.addmm_(rank_GR, weights.b.t())
    else:
        y_GN.copy_(torch.addmm(y_GN.float(), rank_GR, weights.b.float().t()))
