"""LoRA on experts in plain torch: two matrix products per adapter, expert and slice that a token meets.
Semantics: those of `reference`.

Legend: T tokens, X experts of a token, P = T x X pairs (p = t * X + x), G pairs of one adapter and expert, D
hidden, I an expert's width, R rank, K in features, N out features.
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from kernels.lora import LoraBatch, LoraWeights, SlotTable
from kernels.moe.cpu import by_key
from kernels.moe.routing import Routing


def apply_gate_up(
    y_P2I: Tensor, x_TD: Tensor, routing: Routing, *, first_slice: int, batch: LoraBatch, table: SlotTable
) -> None:
    """Add each pair's adapter to its expert's gate and up, in place."""
    wide, top_k = y_P2I.shape[1] // 2, routing.experts_TX.shape[1]
    for slot, expert, pairs_G in _groups(routing, batch):
        gate, up = (table.weights(slot, first_slice + 3 * expert + j) for j in range(2))
        if gate is None and up is None:
            continue
        x_GD, y_G2I = x_TD[pairs_G // top_k].float(), y_P2I[pairs_G].float()
        rank_GR = None
        if gate is not None:
            rank_GR = x_GD @ gate.a.float().t()
            _expand(y_G2I[:, :wide], rank_GR, gate)
        if up is not None:
            if gate is None or rank_GR is None or up.a.data_ptr() != gate.a.data_ptr():
                rank_GR = x_GD @ up.a.float().t()
            _expand(y_G2I[:, wide:], rank_GR, up)
        y_P2I[pairs_G] = y_G2I.to(y_P2I.dtype)


def apply_down(
    y_PD: Tensor, wide_PI: Tensor, routing: Routing, *, first_slice: int, batch: LoraBatch, table: SlotTable
) -> None:
    """Add each pair's adapter to its expert's down, in place."""
    for slot, expert, pairs_G in _groups(routing, batch):
        down = table.weights(slot, first_slice + 3 * expert + 2)
        if down is not None:
            y_GD = y_PD[pairs_G].float()
            _expand(y_GD, wide_PI[pairs_G].float() @ down.a.float().t(), down)
            y_PD[pairs_G] = y_GD.to(y_PD.dtype)


def _expand(y_GN: Tensor, rank_GR: Tensor, weights: LoraWeights) -> None:
    y_GN.addmm_(rank_GR * weights.scaling, weights.b.float().t())


def _groups(routing: Routing, batch: LoraBatch) -> Iterator[tuple[int, int, Tensor]]:
    """Slot and expert of each virtual expert that is hit, with its pairs."""
    experts_TX = routing.experts_TX.numpy()
    first, last = batch.splits[0], batch.splits[-1]
    segment_T = np.repeat(np.arange(len(batch.slots)), np.diff(batch.splits))
    experts = int(experts_TX.max(initial=0)) + 1
    keys_TX = np.full(experts_TX.shape, -1, dtype=np.int64)
    keys_TX[first:last] = np.where(
        experts_TX[first:last] < 0, -1, segment_T[:, None] * experts + experts_TX[first:last]
    )
    for key, pairs_G in by_key(keys_TX.ravel()):
        segment, expert = divmod(key, experts)
        yield batch.slots[segment], expert, pairs_G
