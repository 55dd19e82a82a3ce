"""LoRA over a flat batch in which any token may belong to any adapter.

`apply` serves every linear slice (packed projections are a loop over slices), `embed` the token embedding;
`replace_linear` and `replace_embedding` come before them, for weights that adapters bring whole. All take the
batch's segments and the slot table, and work in place; `reference` defines what they compute.
"""

from collections.abc import Sequence

from torch import Tensor

from kernels.lora import cpu
from kernels.lora.arrivals import Arrivals
from kernels.lora.batch import NO_LORA, LoraBatch, PackedSlice
from kernels.lora.beside_tiles import MOST_RANK, MOST_TOKENS, choose
from kernels.lora.cpu import replace_embedding, replace_linear
from kernels.lora.gpu_tiles import MOST_GATED_RANK
from kernels.lora.rows import UNIT_BYTES, SliceColumns, SliceEntry, SliceShape
from kernels.lora.table import LoraWeights, SlotRow, SlotTable

__all__ = [
    "NO_LORA",
    "UNIT_BYTES",
    "Arrivals",
    "LoraBatch",
    "LoraWeights",
    "PackedSlice",
    "SliceColumns",
    "SliceEntry",
    "SliceShape",
    "SlotRow",
    "SlotTable",
    "ahead",
    "apply",
    "can_be_ahead",
    "can_be_beside",
    "can_be_gated",
    "embed",
    "product",
    "replace_embedding",
    "replace_linear",
    "shrink",
    "silu_mul",
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


def can_be_ahead(batch: LoraBatch, table: SlotTable) -> bool:
    """Whether `ahead` can compute the batch: with Triton, without gains and shifts."""
    return (
        batch.tiles is not None and batch.tiles.rank > 0 and not batch.has_vectors and not table.fixed_order
    )


def ahead(
    x_TK: Tensor,
    bias_N: Tensor | None,
    *,
    slices: Sequence[PackedSlice],
    batch: LoraBatch,
    table: SlotTable,
) -> Tensor:
    """What adapters add to a linear layer, and its bias: `[T, N]`, to which the product is still to be added.
    What is written before a product need not be read before it.
    """
    if batch.tiles is None:
        raise ValueError("a batch without tiles has its adapters applied")
    from kernels.lora import gpu

    covers = _covers(batch, len(x_TK))
    return gpu.ahead(x_TK, bias_N, slices=slices, tiles=batch.tiles, table=table, covers=covers)


def can_be_gated(batch: LoraBatch, table: SlotTable) -> bool:
    """Whether `silu_mul` can compute gate and up of the batch: what can be ahead, in half precision, of ranks
    that are not too wide.
    """
    is_half = table.pool.dtype.itemsize == 2
    return (
        can_be_ahead(batch, table)
        and is_half
        and batch.tiles is not None
        and batch.tiles.rank <= MOST_GATED_RANK
    )


def shrink(x_TK: Tensor, *, slices: Sequence[PackedSlice], batch: LoraBatch, table: SlotTable) -> Tensor:
    """What `silu_mul` expands, of a batch that can be gated."""
    if batch.tiles is None:
        raise ValueError("a batch without tiles has its adapters applied")
    from kernels.lora import gpu

    return gpu.shrink(x_TK, slices=slices, tiles=batch.tiles, table=table)


def silu_mul(
    gate_up_T2I: Tensor,
    shrunk: Tensor,
    *,
    slices: Sequence[PackedSlice],
    batch: LoraBatch,
    table: SlotTable,
) -> Tensor:
    """silu(gate) * up, `[T, I]`, of the base's product with what adapters add to it: `shrunk` is what
    `shrink` made of the product's input.
    """
    if batch.tiles is None:
        raise ValueError("a batch without tiles has its adapters applied")
    from kernels.lora import gated

    return gated.silu_mul(
        gate_up_T2I,
        shrunk,
        slices=slices,
        tiles=batch.tiles,
        table=table,
        covers=_covers(batch, len(gate_up_T2I)),
    )


def _covers(batch: LoraBatch, tokens: int) -> bool:
    """Whether all tokens are known to be adapters'."""
    return bool(batch.slots) and (batch.splits[0], batch.splits[-1]) == (0, tokens)


def embed(y_TD: Tensor, ids_T: Tensor, *, slice_index: int, batch: LoraBatch, table: SlotTable) -> None:
    """Apply each token's adapter to the embedding's output, in place; see `reference.embed`."""
    if batch.tiles is None:
        cpu.embed(y_TD, ids_T, slice_index=slice_index, batch=batch, table=table)
        return
    from kernels.lora import gpu

    gpu.embed(y_TD, ids_T, slice_index=slice_index, tiles=batch.tiles, table=table)


def can_be_beside(tokens: int, *, rank: int, table: SlotTable) -> bool:
    """Whether `product` can compute that many tokens of adapters of ranks up to `rank`, without gains and
    shifts.
    """
    is_half = table.pool.dtype.itemsize == 2
    return is_half and not table.fixed_order and tokens <= MOST_TOKENS and 0 < rank <= MOST_RANK


def product(
    x_TK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    *,
    slices: Sequence[PackedSlice],
    batch: LoraBatch,
    table: SlotTable,
    gated: bool = False,
) -> Tensor:
    """A linear layer with its adapters in one launch, for batches with arrivals: float32 parts `[C, T, N]`
    whose sum it is. `gated`, maybe silu(gate) * up of that, `[T, N / 2]`, and no parts.
    """
    if batch.tiles is None or batch.arrivals is None:
        raise ValueError("a batch without arrivals or tiles has its adapters applied")
    from kernels.lora import beside

    return beside.multiply(
        x_TK,
        weight_NK,
        bias_N,
        slices=slices,
        tiles=batch.tiles,
        table=table,
        arrived=batch.arrivals.take(),
        cut=choose(len(x_TK), *weight_NK.shape, rank=batch.tiles.rank, tiles=batch.tiles.count),
        gated=gated,
    )
