"""LoRA in plain torch: two matrix products per segment and slice. Semantics: those of `reference`.

Weights that adapters bring whole are handled here for every device: one product per segment that has one.

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
            rank_GR = x_GK @ weights.a.float().t() if len(weights.a) else None
            _expand(y_GN if len(slices) == 1 else y_GN[:, start:stop], rank_GR, weights)


def embed(y_TD: Tensor, ids_T: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable) -> None:
    """Look each segment's tokens up in its own adapter's lora_a and expand, adding to y in place."""
    for segment, slot in enumerate(batch.slots):
        weights = table.weights(slot, slice_index)
        if weights is not None:
            first, last = batch.splits[segment], batch.splits[segment + 1]
            rank_GR = weights.a.index_select(0, ids_T[first:last]).float() if weights.a.numel() else None
            _expand(y_TD[first:last], rank_GR, weights)


def replace_linear(
    y_TN: Tensor, x_TK: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable
) -> None:
    """Compute segments whose slot brings a weight for this slice with that weight, in place."""
    for segment, slot in enumerate(batch.slots):
        weight_NK = table.saved_weight(slot, slice_index)
        if weight_NK is not None:
            tokens = slice(batch.splits[segment], batch.splits[segment + 1])
            if table.fixed_order and x_TK.is_cuda:
                from kernels.linear.fixed import multiply  # imports Triton

                y_TN[tokens] = multiply(x_TK[tokens], weight_NK, None)
            else:
                torch.mm(x_TK[tokens], weight_NK.t(), out=y_TN[tokens])


def replace_embedding(
    y_TD: Tensor, ids_T: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable
) -> None:
    """Look up segments whose slot brings a weight for this slice in that weight, in place."""
    for segment, slot in enumerate(batch.slots):
        weight_VD = table.saved_weight(slot, slice_index)
        if weight_VD is not None:
            tokens = slice(batch.splits[segment], batch.splits[segment + 1])
            torch.index_select(weight_VD, 0, ids_T[tokens], out=y_TD[tokens])


def _expand(y_GN: Tensor, rank_GR: Tensor | None, weights: LoraWeights) -> None:
    """y = gain * (y + (scaling * rank) @ lora_b.T) + shift; `rank_GR` is ours to overwrite."""
    wide_GN = y_GN if y_GN.dtype == torch.float32 else y_GN.float()
    if rank_GR is not None:
        wide_GN.addmm_(rank_GR.mul_(weights.scaling), weights.b.float().t())
    if weights.gain is not None:
        wide_GN.mul_(weights.gain)
    if weights.shift is not None:
        wide_GN.add_(weights.shift)
    if wide_GN is not y_GN:
        y_GN.copy_(wide_GN)
