"""What the LoRA kernels compute, token by token. Read it as the definition; nothing serves with it.

Legend: T tokens, K in features, N out features of the packed projection, R rank, D hidden.
"""

from collections.abc import Sequence

from torch import Tensor

from kernels.lora.batch import LoraBatch, PackedSlice
from kernels.lora.table import LoraWeights, SlotTable


def apply(
    y_TN: Tensor, x_TK: Tensor, *, slices: Sequence[PackedSlice], batch: LoraBatch, table: SlotTable
) -> None:
    """Add each token's adapter to a projection's output, in place.

    Semantics: for each token t of slot s and each slice i touching columns c of y, `y[t, c] = gain[s, i] *
    (y[t, c] + (scaling[s, i] * (x[t] @ lora_a.T)) @ lora_b.T) + shift[s, i]`, computed in float32 and rounded
    once to y's dtype. A slice without gain, shift or LoRA has ones, zeros and no product.

    Shapes: y `[T, N]`, x `[T, K]`, both in the compute dtype. Tokens outside every segment are left
    untouched.
    """
    for slot, t in _tokens(batch):
        for index, start, stop in slices:
            weights = table.weights(slot, index)
            if weights is not None:
                rank_R = weights.scaling * (weights.a.float() @ x_TK[t].float())
                delta_N = weights.b.float() @ rank_R
                y_TN[t, start:stop] = _adapted(y_TN[t, start:stop], delta_N, weights)


def embed(y_TD: Tensor, ids_T: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable) -> None:
    """Add each token's adapter to the embedding's output, in place.

    Semantics: for each token t of slot s, `y[t] = gain[s] * (y[t] + (scaling[s] * lora_a[ids[t]]) @ lora_b.T)
    + shift[s]`, with lora_a `[V, R]`, computed in float32 and rounded once to y's dtype.

    Shapes: y `[T, D]` in the compute dtype, ids `[T]` int64.
    """
    for slot, t in _tokens(batch):
        weights = table.weights(slot, slice_index)
        if weights is not None:
            rank_R = weights.scaling * weights.a[int(ids_T[t])].float()
            y_TD[t] = _adapted(y_TD[t], weights.b.float() @ rank_R, weights)


def replace_linear(
    y_TN: Tensor, x_TK: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable
) -> None:
    """For each token t whose slot brings a weight for this slice: `y[t] = x[t] @ weight.T`, in place."""
    for slot, t in _tokens(batch):
        weight_NK = table.saved_weight(slot, slice_index)
        if weight_NK is not None:
            y_TN[t] = (weight_NK.float() @ x_TK[t].float()).to(y_TN.dtype)


def replace_embedding(
    y_TD: Tensor, ids_T: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable
) -> None:
    """For each token t whose slot brings a weight for this slice: `y[t] = weight[ids[t]]`, in place."""
    for slot, t in _tokens(batch):
        weight_VD = table.saved_weight(slot, slice_index)
        if weight_VD is not None:
            y_TD[t] = weight_VD[int(ids_T[t])]


def _adapted(y_N: Tensor, delta_N: Tensor, weights: LoraWeights) -> Tensor:
    adapted_N = y_N.float() + delta_N
    if weights.gain is not None:
        adapted_N = adapted_N * weights.gain
    if weights.shift is not None:
        adapted_N = adapted_N + weights.shift
    return adapted_N.to(y_N.dtype)


def _tokens(batch: LoraBatch) -> list[tuple[int, int]]:
    return [
        (slot, token)
        for segment, slot in enumerate(batch.slots)
        for token in range(batch.splits[segment], batch.splits[segment + 1])
    ]
