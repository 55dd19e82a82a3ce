"""What LoRA on experts computes, pair by pair. Read it as the definition; nothing serves with it.

Legend: T tokens, X experts of a token, P = T x X pairs (p = t * X + x), D hidden, I an expert's width, R
rank.
"""

from collections.abc import Iterator

from torch import Tensor

from kernels.lora import LoraBatch, LoraWeights, SlotTable
from kernels.moe.routing import Routing


def apply_gate_up(
    y_P2I: Tensor, x_TD: Tensor, routing: Routing, *, first_slice: int, batch: LoraBatch, table: SlotTable
) -> None:
    """Add each pair's adapter to its expert's gate and up, in place.

    Semantics: for each pair p of token t, of slot s, and expert e, with i = first_slice + 3 e,

        y[p, :I] += (scaling[s, i] * (x[t] @ lora_a[s, i].T)) @ lora_b[s, i].T
        y[p, I:] += (scaling[s, i + 1] * (x[t] @ lora_a[s, i + 1].T)) @ lora_b[s, i + 1].T

    computed in float32 and rounded once to y's dtype. Slices without LoRA, tokens outside every segment and
    pairs of expert -1 are left untouched.

    Shapes: y `[P, 2 I]`, x `[T, D]`, both in the compute dtype.
    """
    wide, top_k = y_P2I.shape[1] // 2, routing.experts_TX.shape[1]
    for slot, p, expert in _pairs(routing, batch):
        for j in range(2):
            weights = table.weights(slot, first_slice + 3 * expert + j)
            if weights is not None:
                _add(y_P2I[p, j * wide : (j + 1) * wide], x_TD[p // top_k], weights)


def apply_down(
    y_PD: Tensor, wide_PI: Tensor, routing: Routing, *, first_slice: int, batch: LoraBatch, table: SlotTable
) -> None:
    """Add each pair's adapter to its expert's down, in place.

    Semantics: for each pair p of a token of slot s and expert e, with i = first_slice + 3 e + 2,

        y[p] += (scaling[s, i] * (wide[p] @ lora_a[s, i].T)) @ lora_b[s, i].T

    as in `apply_gate_up`. Shapes: y `[P, D]`, wide `[P, I]`, both in the compute dtype.
    """
    for slot, p, expert in _pairs(routing, batch):
        weights = table.weights(slot, first_slice + 3 * expert + 2)
        if weights is not None:
            _add(y_PD[p], wide_PI[p], weights)


def _add(y_N: Tensor, x_K: Tensor, weights: LoraWeights) -> None:
    rank_R = weights.scaling * (weights.a.float() @ x_K.float())
    y_N.copy_(y_N.float() + weights.b.float() @ rank_R)


def _pairs(routing: Routing, batch: LoraBatch) -> Iterator[tuple[int, int, int]]:
    """Slot, pair and expert of all pairs that have all three."""
    top_k = routing.experts_TX.shape[1]
    for segment, slot in enumerate(batch.slots):
        for t in range(batch.splits[segment], batch.splits[segment + 1]):
            for x, expert in enumerate(routing.experts_TX[t].tolist()):
                if expert >= 0:
                    yield slot, t * top_k + x, expert
