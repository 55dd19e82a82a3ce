"""How one tensor holds the LoRA of all experts of a layer: every way in which its shape fits.

Legend: E experts, R rank, K in features, N out features.

| names | lora_A | lora_B |
|---|---|---|
| of PEFT's target_parameters | [E * R, K] or [E, R, K] | [N, R * E] or [N, R, E] |
| the same up to PEFT 0.19.0 | [E * R, N], gives lora_b | [K, R * E], gives lora_a |
| of projections | [E, R, K] | [E, N, R] |

Where a tensor of three dimensions has 1 instead of E, all experts share it. All but PEFT's older form may be
stored transposed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from adapter_store.formats.fitting import wrong_shape
from adapter_store.formats.layout import Experts, PackLayout
from adapter_store.formats.peft_config import PeftConfig
from adapter_store.formats.safetensors_files import TensorEntry
from rpc.errors import LorikeetError, invalid_argument


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertStack:
    """Two tensors for all experts of a layer, and which of their projections they are for.

    `projections` are 0 for gate, 1 for up, 2 for down. `path` is the parameter's, by which the config's
    patterns find it. `is_nested` tells PEFT's names from those of projections.
    """

    experts: Experts
    projections: tuple[int, ...]
    path: str
    lora_a: TensorEntry
    lora_b: TensorEntry
    is_nested: bool

    @property
    def modules(self) -> list[str]:
        return [triple[index].module for triple in self.experts.slices for index in self.projections]

    @property
    def inputs(self) -> int:
        return self.experts.slices[0][self.projections[0]].inputs

    @property
    def outputs(self) -> int:
        return sum(self.experts.slices[0][index].outputs for index in self.projections)


class Steps(NamedTuple):
    """How far apart experts (0: all share one), ranks and features lie in a tensor, in elements."""

    expert: int
    rank: int
    feature: int


class Reading(NamedTuple):
    """A way to read both tensors: `a` of the one that gives lora_a, `b` of the other.

    `form` is "plain", "turned" where one of them is transposed, or "old".
    """

    form: str
    a: Steps
    b: Steps


def readings(stack: ExpertStack, rank: int) -> Iterator[Reading]:
    """Every way in which both tensors have the right shapes."""
    count, inputs, outputs = stack.experts.count, stack.inputs, stack.outputs
    a_shape, b_shape = stack.lora_a.shape, stack.lora_b.shape
    read_a, read_b = (_nested_a, _nested_b) if stack.is_nested else (_named_a, _named_b)
    for a, is_a_turned in read_a(a_shape, count, rank, inputs):
        for b, is_b_turned in read_b(b_shape, count, rank, outputs):
            yield Reading("turned" if is_a_turned or is_b_turned else "plain", a, b)
    if stack.is_nested and (a_shape, b_shape) == ((count * rank, outputs), (inputs, rank * count)):
        yield Reading("old", Steps(1, count, rank * count), Steps(rank * outputs, outputs, 1))


_Readings = list[tuple[Steps, bool]]


def _nested_a(shape: tuple[int, ...], count: int, rank: int, width: int) -> _Readings:
    found = []
    if shape in ((count * rank, width), (count, rank, width)):
        found.append((Steps(rank * width, width, 1), False))
    elif shape == (1, rank, width):
        found.append((Steps(0, width, 1), False))
    if shape == (width, count * rank):
        found.append((Steps(rank, 1, count * rank), True))
    return found


def _nested_b(shape: tuple[int, ...], count: int, rank: int, width: int) -> _Readings:
    found = []
    if shape in ((width, rank * count), (width, rank, count)):
        found.append((Steps(1, count, rank * count), False))
    elif shape == (width, rank, 1):
        found.append((Steps(0, 1, rank), False))
    if shape == (rank * count, width):
        found.append((Steps(width, count * width, 1), True))
    return found


def _named_a(shape: tuple[int, ...], count: int, rank: int, width: int) -> _Readings:
    step = rank * width if shape[:1] == (count,) else 0
    found = []
    if shape in ((count, rank, width), (1, rank, width)):
        found.append((Steps(step, width, 1), False))
    if shape in ((count, width, rank), (1, width, rank)):
        found.append((Steps(step, 1, rank), True))
    return found


def _named_b(shape: tuple[int, ...], count: int, rank: int, width: int) -> _Readings:
    step = rank * width if shape[:1] == (count,) else 0
    found = []
    if shape in ((count, width, rank), (1, width, rank)):
        found.append((Steps(step, 1, rank), False))
    if shape in ((count, rank, width), (1, rank, width)):
        found.append((Steps(step, width, 1), True))
    return found


def misfit(stack: ExpertStack, rank: int, config: PeftConfig, layout: PackLayout) -> LorikeetError:
    """What is wrong with tensors that fit in no way, by how they should be."""
    count, module = stack.experts.count, stack.experts.module
    # Where experts, ranks and features should be; a stack of two dimensions has experts and ranks in one.
    axes = ((0, 1, 2), (2, 1, 0)) if stack.is_nested else ((0, 1, 2), (0, 2, 1))
    widths = (stack.inputs, stack.outputs)
    for entry, width, (e, r, f) in zip((stack.lora_a, stack.lora_b), widths, axes, strict=True):
        is_flat = len(entry.shape) == 2 and stack.is_nested
        needed = {e: count, r: rank, f: width}
        if is_flat:
            e, f = min(e, 1), min(f, 1)
            needed = {e: count * rank, f: width}
        if len(entry.shape) != len(needed) or entry.shape[f] != width:
            return wrong_shape(entry, str([needed[axis] for axis in sorted(needed)]), config, layout)
        if is_flat and entry.shape[e] != count * rank:
            return _wrong_flat(entry, module, count, entry.shape[e], rank)
        if not is_flat and entry.shape[e] not in (1, count):
            return _wrong_experts(entry, module, count, entry.shape[e], entry.shape[r])
        if not is_flat and entry.shape[r] != rank:
            return _wrong_rank(entry, module, count, entry.shape[r], rank)
    return wrong_shape(stack.lora_b, "another orientation", config, layout)


def _wrong_flat(entry: TensorEntry, module: str, count: int, stacked: int, rank: int) -> LorikeetError:
    if stacked % count == 0:
        other = f" (unless it is for {stacked // rank} experts)" if stacked % rank == 0 else ""
        return _wrong_rank(entry, module, count, stacked // count, rank, other)
    if stacked % rank == 0:
        return _wrong_experts(entry, module, count, stacked // rank, rank)
    return invalid_argument(
        "STACKED_RANK",
        f"{entry.name} is {list(entry.shape)}, which does not divide among the {count} experts of {module}",
        module=module,
    )


def _wrong_experts(entry: TensorEntry, module: str, count: int, found: int, rank: int) -> LorikeetError:
    return invalid_argument(
        "WRONG_EXPERTS",
        f"{entry.name} is {list(entry.shape)}, which makes {found} experts of rank {rank}; "
        f"{module} has {count}",
        module=module,
    )


def _wrong_rank(
    entry: TensorEntry, module: str, count: int, found: int, rank: int, other: str = ""
) -> LorikeetError:
    return invalid_argument(
        "RANK_MISMATCH",
        f"{module}: {entry.name} has rank {found} for each of {count} experts, its config says {rank}{other}",
        module=module,
    )
