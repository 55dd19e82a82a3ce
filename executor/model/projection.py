"""A linear layer with its adapters, in as few launches as they allow."""

from torch import Tensor

from executor.model.parameters import Linear
from kernels import lora
from kernels.fused import FusedSteps
from kernels.lora import LoraBatch, PackedSlice, SlotTable


def project(
    x_TK: Tensor,
    layer: Linear,
    slices: tuple[PackedSlice, ...],
    batch: LoraBatch,
    *,
    adapters: SlotTable,
    steps: FusedSteps,
    is_added: bool = False,
) -> Tensor:
    """`[T, N]`, or float32 parts `[C, T, N]` whose sum it is, for a fused step that sums them. `is_added`:
    that step is `add_norm`, which can do so always.
    """
    if batch.empty:
        product = steps.linear_to_add if is_added else steps.linear
        return product(x_TK, layer.weight, layer.bias)
    if batch.arrivals is not None:
        return lora.product(x_TK, layer.weight, layer.bias, slices=slices, batch=batch, table=adapters)
    if lora.can_be_ahead(batch, adapters):
        y_TN = lora.ahead(x_TK, layer.bias, slices=slices, batch=batch, table=adapters)
        return add_product(y_TN, x_TK, layer.weight)
    y_TN = steps.linear(x_TK, layer.weight, layer.bias)
    lora.apply(y_TN, x_TK, slices=slices, batch=batch, table=adapters)
    return y_TN


def project_gated(
    x_TK: Tensor,
    layer: Linear,
    slices: tuple[PackedSlice, ...],
    batch: LoraBatch,
    *,
    adapters: SlotTable,
    steps: FusedSteps,
) -> Tensor:
    """`[T, N / 2]`: silu(gate) * up, which are the halves of what `project` returns."""
    if batch.empty:
        return steps.linear_silu_mul(x_TK, layer.weight, layer.bias)
    if batch.arrivals is not None:
        y = lora.product(
            x_TK, layer.weight, layer.bias, slices=slices, batch=batch, table=adapters, gated=True
        )
        return steps.silu_mul(y, x_TK.dtype) if y.dim() == 3 else y
    if lora.can_be_gated(batch, adapters):
        # The product first: programs of the last step start while a shrink ends, but not beside a product.
        y_TN = steps.linear(x_TK, layer.weight, layer.bias)
        shrunk = lora.shrink(x_TK, slices=slices, batch=batch, table=adapters)
        return lora.silu_mul(y_TN, shrunk, slices=slices, batch=batch, table=adapters)
    y_TN = project(x_TK, layer, slices, batch, adapters=adapters, steps=steps)
    return steps.silu_mul(y_TN, x_TK.dtype)


def add_product(y_TN: Tensor, x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """`y += x @ weight.T`, in place."""
    return y_TN.addmm_(x_TK, weight_NK.t())
