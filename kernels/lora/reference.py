"""What the LoRA kernels compute, token by token. Read it as the definition; nothing serves with it.

Legend: T tokens, K in features, N out features of the packed projection, R rank, D hidden.
"""

from collections.abc import Sequence

from torch import Tensor

from kernels.lora.batch import LoraBatch, PackedSlice
from kernels.lora.table import SlotTable


def apply(
    y_TN: Tensor, x_TK: Tensor, *, slices: Sequence[PackedSlice], batch: LoraBatch, table: SlotTable
) -> None:
    """Add each token's adapter to a projection's output, in place.

    Semantics: for each token t of slot s and each slice i touching columns c of y, `y[t, c] += (scaling[s,
    i] * (x[t] @ lora_a.T)) @ lora_b.T`, computed in float32 and rounded once to y's dtype.

    Shapes: y `[T, N]`, x `[T, K]`, both in the compute dtype. Tokens outside every segment are left
    untouched.
    """
    for slot, t in _tokens(batch):
        for index, start, stop in slices:
            weights = table.weights(slot, index)
            if weights is not None:
                rank_R = weights.scaling * (weights.a.float() @ x_TK[t].float())
                delta_N = weights.b.float() @ rank_R
                y_TN[t, start:stop] = (y_TN[t, start:stop].float() + delta_N).to(y_TN.dtype)


def embed(y_TD: Tensor, ids_T: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable) -> None:
    """Add each token's adapter to the embedding's output, in place.

    Semantics: for each token t of slot s, `y[t] += (scaling[s] * lora_a[ids[t]]) @ lora_b.T`, with lora_a
    `[V, R]`, computed in float32 and rounded once to y's dtype.

    Shapes: y `[T, D]` in the compute dtype, ids `[T]` int64.
    """
    for slot, t in _tokens(batch):
        weights = table.weights(slot, slice_index)
        if weights is not None:
            rank_R = weights.scaling * weights.a[int(ids_T[t])].float()
            y_TD[t] = (y_TD[t].float() + weights.b.float() @ rank_R).to(y_TD.dtype)


def _tokens(batch: LoraBatch) -> list[tuple[int, int]]:
    return [
        (slot, token)
        for segment, slot in enumerate(batch.slots)
        for token in range(batch.splits[segment], batch.splits[segment + 1])
    ]
