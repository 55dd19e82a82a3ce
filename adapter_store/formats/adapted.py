"""A place of the base model with what an adapter brings for it."""

from collections.abc import Iterator
from typing import NamedTuple

from adapter_store.formats.layout import Slice
from adapter_store.formats.safetensors_files import TensorEntry


class Cut(NamedTuple):
    """A matrix within a tensor, all counted in elements: (i, j) is at start + i * row_step + j * column_step.

    Several slices may have the same cut of the same tensor; a pack holds it once.
    """

    start: int
    rows: int
    columns: int
    row_step: int
    column_step: int


class AdaptedSlice(NamedTuple):
    """A slice with what an adapter brings for it; tensors as on disk.

    lora_a is [rank, inputs] and lora_b [outputs, rank], unless stored transposed; both are absent at rank 0.
    Where a_cut or b_cut is there, the matrix is that part of the tensor, whatever the tensor's shape.
    magnitude (of DoRA), lora_bias and bias are [outputs]; weight takes the place of the base's.
    """

    slice: Slice
    rank: int
    scaling: float
    lora_a: TensorEntry | None = None
    lora_b: TensorEntry | None = None
    magnitude: TensorEntry | None = None
    lora_bias: TensorEntry | None = None
    bias: TensorEntry | None = None
    weight: TensorEntry | None = None
    is_a_transposed: bool = False
    is_b_transposed: bool = False
    a_cut: Cut | None = None
    b_cut: Cut | None = None

    def tensors(self) -> Iterator[tuple[str, TensorEntry]]:
        """(part, tensor) of those that are there, in the order of a pack."""
        for part, entry in (
            ("lora_a", self.lora_a),
            ("lora_b", self.lora_b),
            ("magnitude", self.magnitude),
            ("lora_bias", self.lora_bias),
            ("bias", self.bias),
            ("weight", self.weight),
        ):
            if entry is not None:
                yield part, entry

    def cut_of(self, part: str) -> Cut | None:
        """The part of its tensor that counts; None for all of it."""
        return self.a_cut if part == "lora_a" else self.b_cut if part == "lora_b" else None

    @property
    def parts(self) -> tuple[str, ...]:
        """What there is, in the words of AdaptedPart."""
        found = [part.upper() for part, _ in self.tensors()]
        return ("LORA", *found[2:]) if self.lora_a is not None else tuple(found)

    @property
    def has_shift(self) -> bool:
        """True when the executor derives a vector that it adds to the output besides gain and LoRA."""
        rescales_bias = self.magnitude is not None and self.slice.has_bias
        return self.lora_bias is not None or self.bias is not None or rescales_bias
