"""LoRA over a flat batch in which any token may belong to any adapter.

`apply` serves every linear slice (packed projections are a loop over slices), `embed` the token embedding.
Both take the batch's segments and the slot table, and add in place; `reference` defines what they compute.
"""

from kernels.lora.batch import NO_LORA, LoraBatch, PackedSlice
from kernels.lora.cpu import apply, embed
from kernels.lora.table import UNIT_BYTES, LoraWeights, SliceEntry, SliceShape, SlotTable

__all__ = [
    "NO_LORA",
    "UNIT_BYTES",
    "LoraBatch",
    "LoraWeights",
    "PackedSlice",
    "SliceEntry",
    "SliceShape",
    "SlotTable",
    "apply",
    "embed",
]
