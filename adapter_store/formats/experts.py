"""LoRA of all experts of a layer in one tensor: what it belongs to, and how it is cut into slices.

A gate_up_proj has the outputs of gate first, then those of up; both have the same lora_a.
"""

import re
from collections.abc import Mapping

from adapter_store.formats.adapted import AdaptedSlice, Cut
from adapter_store.formats.fitting import check_dtype, rank_too_large, scaling_of
from adapter_store.formats.layout import Experts, PackLayout
from adapter_store.formats.names import Part, Stack
from adapter_store.formats.peft_config import PeftConfig
from adapter_store.formats.safetensors_files import TensorEntry
from adapter_store.formats.stack_shapes import ExpertStack, Reading, misfit, readings
from rpc.errors import LorikeetError, invalid_argument

_GATE_UP, _DOWN = (0, 1), (2,)
_PROJECTIONS = {Stack.GATE: (0,), Stack.UP: (1,), Stack.DOWN: _DOWN, Stack.GATE_UP: _GATE_UP}
_PARAMETERS = {_GATE_UP: "gate_up_proj", _DOWN: "down_proj", (0,): "gate_proj", (1,): "up_proj"}
# From which on PEFT takes an expert's weight as [out, in].
_OUT_FIRST_VERSION = (0, 19, 1)


def find_stacks(
    experts: Experts, tensors: Mapping[Stack, Mapping[Part, TensorEntry]], config: PeftConfig
) -> list[ExpertStack]:
    """Which projections the tensors of one layer are for.

    Raises:
        LorikeetError: INVALID_ARGUMENT for a mixture of forms, or a tensor that is missing.
    """
    nested = [stack for stack in tensors if stack in (Stack.OUTER, Stack.INNER)]
    if nested and len(nested) < len(tensors):
        raise mixed_experts(experts.module, "as parameters and as projections")
    if Stack.GATE_UP in tensors and (Stack.GATE in tensors or Stack.UP in tensors):
        raise mixed_experts(experts.module, "for gate_up_proj and for gate_proj or up_proj")
    if nested == [Stack.INNER]:
        raise invalid_argument(
            "MISSING_TENSORS",
            f"{experts.module}: experts.base_layer.lora_A is there, of gate_up_proj, but experts.lora_A, of "
            "down_proj, is missing: save the adapter again with all its tensors",
            module=experts.module,
        )
    found = []
    for stack, parts in tensors.items():
        for part in (Part.A, Part.B):
            if part not in parts:
                other = next(iter(parts.values()))
                raise invalid_argument(
                    "MISSING_PARTNER",
                    f"{experts.module}: {other.name} has no {part.value}",
                    module=experts.module,
                )
        projections = _PROJECTIONS.get(stack) or _nested(experts, stack, tensors, config)
        found.append(_stack(experts, projections, parts, is_nested=bool(nested)))
    return found


def fit_stack(stack: ExpertStack, config: PeftConfig, layout: PackLayout) -> tuple[list[AdaptedSlice], str]:
    """A slice for each expert and projection, and the form in which the tensors are stored.

    Raises:
        LorikeetError: INVALID_ARGUMENT or UNIMPLEMENTED, naming the tensor that does not fit.
    """
    rank, experts = config.rank_of(stack.path), stack.experts
    for entry in (stack.lora_a, stack.lora_b):
        check_dtype(entry, experts.module)
    reading = _choose(stack, rank, config, layout)
    if rank > layout.max_rank:
        raise rank_too_large(experts.module, rank, layout)
    scaling = scaling_of(stack.path, rank, config)
    is_old = reading.form == "old"
    lora_a, lora_b = (stack.lora_b, stack.lora_a) if is_old else (stack.lora_a, stack.lora_b)
    slices = []
    for expert, triple in enumerate(experts.slices):
        a_cut = Cut(expert * reading.a.expert, rank, stack.inputs, reading.a.rank, reading.a.feature)
        start = expert * reading.b.expert
        for index in stack.projections:
            outputs = triple[index].outputs
            slices.append(
                AdaptedSlice(
                    slice=triple[index],
                    rank=rank,
                    scaling=scaling,
                    lora_a=lora_a,
                    lora_b=lora_b,
                    a_cut=a_cut,
                    b_cut=Cut(start, outputs, rank, reading.b.feature, reading.b.rank),
                )
            )
            start += outputs * reading.b.feature
    return slices, reading.form


def mixed_experts(module: str, how: str) -> LorikeetError:
    """The error for two forms of LoRA on the same experts."""
    return invalid_argument(
        "MIXED_EXPERTS",
        f"{module}: the adapter has LoRA for these experts {how}; save one form only",
        module=module,
    )


def _stack(
    experts: Experts, projections: tuple[int, ...], parts: Mapping[Part, TensorEntry], *, is_nested: bool
) -> ExpertStack:
    return ExpertStack(
        experts=experts,
        projections=projections,
        path=f"{experts.module}.{_PARAMETERS[projections]}",
        lora_a=parts[Part.A],
        lora_b=parts[Part.B],
        is_nested=is_nested,
    )


def _nested(
    experts: Experts, stack: Stack, tensors: Mapping[Stack, Mapping[Part, TensorEntry]], config: PeftConfig
) -> tuple[int, ...]:
    """The model has gate_up_proj before down_proj, so that PEFT wraps it first, and then the wrapper."""
    if len(tensors) == 2:
        return _GATE_UP if stack is Stack.INNER else _DOWN
    targeted = [
        projections
        for projections in (_GATE_UP, _DOWN)
        if config.parameters.mean(f"{experts.module}.{_PARAMETERS[projections]}")
    ]
    if len(targeted) == 1:
        return targeted[0]
    # The config does not tell: the shapes do.
    gate_up = _stack(experts, _GATE_UP, tensors[stack], is_nested=True)
    return _GATE_UP if any(readings(gate_up, config.rank_of(gate_up.path))) else _DOWN


def _choose(stack: ExpertStack, rank: int, config: PeftConfig, layout: PackLayout) -> Reading:
    found = list(readings(stack, rank))
    forms = [reading.form for reading in found]
    if "plain" in forms and "old" in forms:
        return found[forms.index(_form_of_version(stack, config))]
    for form in ("plain", "old"):
        if form in forms:
            return found[forms.index(form)]
    if len(found) == 1:
        return found[0]
    if found:
        raise invalid_argument(
            "AMBIGUOUS_SHAPE",
            f"{stack.lora_a.name} is {list(stack.lora_a.shape)} and {stack.lora_b.name} "
            f"{list(stack.lora_b.shape)}: nothing tells which of them is transposed; save both as PEFT does",
            module=stack.experts.module,
        )
    raise misfit(stack, rank, config, layout)


def _form_of_version(stack: ExpertStack, config: PeftConfig) -> str:
    if version := re.match(r"(\d+)\.(\d+)\.(\d+)", config.peft_version):
        return "plain" if tuple(map(int, version.groups())) >= _OUT_FIRST_VERSION else "old"
    raise invalid_argument(
        "AMBIGUOUS_SHAPE",
        f"{stack.lora_a.name}: PEFT up to 0.19.0 stored an expert's LoRA the other way round, and the shapes "
        "fit both; say in adapter_config.json which peft_version saved it",
        module=stack.experts.module,
    )
