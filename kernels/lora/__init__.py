"""LoRA over a flat batch in which any token may belong to any adapter.

`apply` serves every linear slice (packed projections are a loop over slices), `embed` the token embedding;
`replace_linear` and `replace_embedding` come before them, for weights that adapters bring whole. All take the
batch's segments and the slot table, and work in place; `reference` defines what they compute.
"""

from collections.abc import Sequence

from torch import Tensor

from kernels.lora import cpu
from kernels.lora.batch import NO_LORA, LoraBatch, PackedSlice
from kernels.lora.cpu import replace_embedding, replace_linear
from kernels.lora.rows import UNIT_BYTES, SliceColumns, SliceEntry, SliceShape
from kernels.lora.table import LoraWeights, SlotRow, SlotTable

__all__ = [
    "NO_LORA",
    "UNIT_BYTES",
    "LoraBatch",
    "LoraWeights",
    "PackedSlice",
    "SliceColumns",
    "SliceEntry",
    "SliceShape",
    "SlotRow",
    "SlotTable",
    "apply",
    "embed",
    "replace_embedding",
    "replace_linear",
]


def apply(
    y_TN: Tensor, x_TK: Tensor, *, slices: Sequence[PackedSlice], batch: LoraBatch, table: SlotTable
) -> None:
    """Apply each token's adapter to a projection's output, in place; see `reference.apply`."""
    if batch.tiles is None:
        cpu.apply(y_TN, x_TK, slices=slices, batch=batch, table=table)
        return
    from kernels.lora import gpu  # imports Triton, which the CPU does without

    gpu.apply(y_TN, x_TK, slices=slices, tiles=batch.tiles, table=table)


def embed(y_TD: Tensor, ids_T: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable) -> None:
    """Apply each token's adapter to the embedding's output, in place; see `reference.embed`."""
    if batch.tiles is None:
        cpu.embed(y_TD, ids_T, slice_index=slice_index, batch=batch, table=table)
        return
    from kernels.lora import gpu

    gpu.embed(y_TD, ids_T, slice_index=slice_index, tiles=batch.tiles, table=table)
