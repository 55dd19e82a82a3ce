"""Matches an adapter's tensors to places of the base model, and refuses what does not fit exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adapter_store.formats.adapted import AdaptedSlice
from adapter_store.formats.coverage import check_targets, refuse_missing, refuse_stray, saved_modules
from adapter_store.formats.experts import ExpertStack, find_stacks, fit_stack, mixed_experts
from adapter_store.formats.fitting import check_weight, fit_slice, other_base
from adapter_store.formats.layout import PackLayout, Slice
from adapter_store.formats.names import LORA_PARTS, Part, Stack, TensorRole, role_of
from adapter_store.formats.peft_config import PeftConfig
from adapter_store.formats.safetensors_files import TensorEntry
from adapter_store.formats.targets import is_parameter_targeted, is_targeted
from rpc.errors import invalid_argument, unimplemented

_Parts = dict[str, dict[Part, TensorEntry]]


@dataclass(frozen=True, kw_only=True)
class Match:
    """An adapter that fits: its slices in the layout's order, and what is worth knowing about the rest."""

    slices: tuple[AdaptedSlice, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the tensors' names say; the keys are modules of the base, in `stacks` all experts of a layer.

    `written` is the adapter's path of a module, `wrapped` whether its bias lay inside a LoRA.
    """

    parts: _Parts = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    wrapped: dict[str, bool] = field(default_factory=dict)
    stacks: dict[str, dict[Stack, dict[Part, TensorEntry]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def match_adapter(entries: Mapping[str, TensorEntry], config: PeftConfig, layout: PackLayout) -> Match:
    """Finds the place of every tensor, by headers alone.

    Raises:
        LorikeetError: INVALID_ARGUMENT or UNIMPLEMENTED, naming the module or tensor that does not fit and
        why.
    """
    saved = saved_modules(config, layout)
    found = _find(entries, config, layout)
    stacks = _stacks(found, config, layout)
    paths = {module: stack.path for stack in stacks for module in stack.modules}
    for module, parts in found.parts.items():
        if not LORA_PARTS.isdisjoint(parts):
            paths[module] = _path(found.written[module], layout.by_module[module], config)
    coverage = check_targets(paths, saved, config, layout)
    found.notes.extend(coverage.notes)
    _check_saved(found.parts, saved)
    _check_biases(found, coverage.targeted, saved, config, layout)
    _check_expert_options(paths, config, layout)
    return _fit(found, stacks, paths, config, layout)


def _find(entries: Mapping[str, TensorEntry], config: PeftConfig, layout: PackLayout) -> _Found:
    found = _Found()
    for name, entry in sorted(entries.items()):
        role = role_of(name)
        if role.stack is not None:
            parts = found.stacks.setdefault(role.module, {}).setdefault(role.stack, {})
            _check_stacked(role, entry, layout, config)
        else:
            slice_ = _slice_of(role, entry, layout, config)
            if role.part is Part.BASE_COPY:
                check_weight(slice_, entry, config, layout)
                found.notes.append(
                    f"{role.module}: the copy of the base's weight was left out; the base's own is used"
                )
                continue
            parts = found.parts.setdefault(role.module, {})
            found.written[role.module] = role.written
        if role.part in parts:
            raise _duplicate(role, entry)
        parts[role.part] = entry
        if role.part is Part.BIAS:
            found.wrapped[role.module] = role.is_wrapped
    if not found.parts and not found.stacks:
        raise invalid_argument("NO_TENSORS", "the adapter has no LoRA tensors at all")
    return found


def _stacks(found: _Found, config: PeftConfig, layout: PackLayout) -> list[ExpertStack]:
    alone = {module.rsplit(".", 2)[0] for module in found.parts if layout.by_module[module].is_expert}
    for module in sorted(alone & found.stacks.keys()):
        raise mixed_experts(module, "one by one and all in one tensor")
    return [
        stack
        for module, tensors in found.stacks.items()
        for stack in find_stacks(layout.experts[module], tensors, config)
    ]


def _path(written: str, slice_: Slice, config: PeftConfig) -> str:
    """By what the config's patterns find a module: a parameter's path, where it is only targeted as one."""
    if (
        config.target_parameters
        and not is_targeted(config, written)
        and is_parameter_targeted(config, slice_)
    ):
        return f"{written}.weight"
    return written


def _fit(
    found: _Found,
    stacks: Sequence[ExpertStack],
    paths: Mapping[str, str],
    config: PeftConfig,
    layout: PackLayout,
) -> Match:
    fitted: dict[int, AdaptedSlice] = {}
    old, turned = [], []
    for stack in stacks:
        slices, form = fit_stack(stack, config, layout)
        fitted |= {adapted.slice.index: adapted for adapted in slices}
        if form != "plain":
            (old if form == "old" else turned).append(stack.path)
    for module, parts in found.parts.items():
        slice_ = layout.by_module[module]
        fitted[slice_.index] = fit_slice(
            slice_, parts, paths.get(module, found.written[module]), config, layout
        )
    slices = [fitted[index] for index in sorted(fitted)]
    turned += [
        adapted.slice.module for adapted in slices if adapted.is_a_transposed or adapted.is_b_transposed
    ]
    notes = (
        *found.notes,
        *_note(turned, "lora_A or lora_B is stored transposed; turned round by its shape"),
        *_note(old, "stored as PEFT up to 0.19.0 did, inputs and outputs of experts exchanged; read so"),
        *_base_note(config, layout),
    )
    return Match(slices=tuple(slices), notes=notes)


def _check_stacked(role: TensorRole, entry: TensorEntry, layout: PackLayout, config: PeftConfig) -> None:
    if role.module not in layout.experts:
        raise invalid_argument(
            "UNKNOWN_MODULE",
            f"{entry.name}: {layout.base_name!r} has no experts at {role.module}"
            + other_base(config, layout),
            module=role.module,
        )
    if role.part in (Part.MAGNITUDE, Part.LORA_BIAS):
        raise _unsupported_on_experts("use_dora" if role.part is Part.MAGNITUDE else "lora_bias", role.module)
    if role.part not in (Part.A, Part.B) or role.is_embedding:
        raise invalid_argument(
            "UNKNOWN_TENSOR",
            f"{entry.name}: experts have lora_A and lora_B, and nothing else",
            tensor=entry.name,
        )


def _check_expert_options(modules: Mapping[str, str], config: PeftConfig, layout: PackLayout) -> None:
    if config.use_dora or config.lora_bias:
        for module in modules:
            if layout.by_module[module].is_expert:
                raise _unsupported_on_experts("use_dora" if config.use_dora else "lora_bias", module)


def _unsupported_on_experts(option: str, module: str) -> Exception:
    return unimplemented(
        "UNSUPPORTED_OPTION",
        f"{module}: {option} is not served on experts; train plain LoRA on them",
        option=option,
        module=module,
    )


def _slice_of(role: TensorRole, entry: TensorEntry, layout: PackLayout, config: PeftConfig) -> Slice:
    slice_ = layout.by_module.get(role.module)
    if role.part is Part.WEIGHT and (slice_ is None or not slice_.is_replaceable):
        raise unimplemented(
            "UNSUPPORTED_TENSOR",
            f"{entry.name}: {role.module} is fully trained (modules_to_save), which is served for lm_head "
            "and embed_tokens only",
            option="modules_to_save",
            module=role.module,
        )
    if role.part is Part.BIAS and slice_ is None:
        raise unimplemented(
            "UNSUPPORTED_TENSOR",
            f"{entry.name} is a trained bias of {role.module}, which cannot carry a LoRA; such biases are "
            "not served (bias)",
            option="bias",
            module=role.module,
        )
    if slice_ is None:
        raise _unknown_module(role, entry, layout, config)
    if role.part is Part.BASE_COPY and role.module.rpartition(".")[2] not in ("lm_head", "embed_tokens"):
        raise invalid_argument("UNKNOWN_TENSOR", f"{entry.name}: a copy of a base weight has no meaning here")
    if role.part in (Part.A, Part.B) and role.is_embedding != slice_.is_embedding:
        kind = "an embedding" if slice_.is_embedding else "a linear layer"
        raise invalid_argument("UNKNOWN_TENSOR", f"{entry.name}: {role.module} is {kind} of this base")
    return slice_


def _unknown_module(
    role: TensorRole, entry: TensorEntry, layout: PackLayout, config: PeftConfig
) -> Exception:
    container, _, expert = role.module.rpartition(".")[0].rpartition(".")
    if container in layout.experts and expert.isdecimal() and int(expert) >= layout.experts[container].count:
        return invalid_argument(
            "WRONG_EXPERTS",
            f"{entry.name}: {container} has {layout.experts[container].count} experts"
            + other_base(config, layout),
            module=role.module,
        )
    return invalid_argument(
        "UNKNOWN_MODULE",
        f"{entry.name}: the base {layout.base_name!r} has no module {role.module} that can carry a LoRA"
        + other_base(config, layout),
        module=role.module,
    )


def _check_saved(parts: _Parts, saved: frozenset[str]) -> None:
    present = {module for module, found in parts.items() if Part.WEIGHT in found}
    refuse_missing(saved - present, "modules_to_save names it but the adapter has no weight for it")
    refuse_stray(present - saved, "its config does not save it whole")


def _check_biases(
    found: _Found, targeted: frozenset[str], saved: frozenset[str], config: PeftConfig, layout: PackLayout
) -> None:
    """Trained biases must be where the config's `bias`, or a module that is saved whole, puts them."""
    for module, is_wrapped in found.wrapped.items():
        if not layout.by_module[module].has_bias:
            raise invalid_argument(
                "NO_BIAS", f"{module}: the adapter brings a bias, the base's has none", module=module
            )
        if is_wrapped != (module in targeted):
            raise invalid_argument(
                "UNKNOWN_TENSOR",
                f"{found.parts[module][Part.BIAS].name}: not where PEFT keeps the bias of a module that is "
                + ("targeted" if module in targeted else "not targeted"),
                module=module,
            )
    due = {
        slice_.module
        for slice_ in layout.slices
        if slice_.has_bias
        and (
            slice_.module in saved
            or config.bias == "all"
            or (config.bias == "lora_only" and slice_.module in targeted)
        )
    }
    refuse_missing(due - found.wrapped.keys(), f"the adapter has no bias for it (bias={config.bias!r})")
    if stray := sorted(found.wrapped.keys() - due):
        raise invalid_argument(
            "OPTION_MISMATCH",
            f"{stray[0]}: the adapter has a bias for it, which its config does not train "
            f"(bias={config.bias!r})",
            option="bias",
            module=stray[0],
        )


def _duplicate(role: TensorRole, entry: TensorEntry) -> Exception:
    return invalid_argument(
        "DUPLICATE_TENSOR",
        f"{entry.name}: {role.module} has two tensors that are its {role.part.value}",
        module=role.module,
    )


def _note(places: Sequence[str], what: str) -> list[str]:
    more = f" and {len(places) - 1} other modules" if len(places) > 1 else ""
    return [f"{places[0]}{more}: {what}"] if places else []


def _base_note(config: PeftConfig, layout: PackLayout) -> list[str]:
    # Names prove nothing (a folder may be called anything), so a base of the same shapes is let through, but
    # said.
    difference = other_base(config, layout)
    return [difference.removeprefix("; ") + "; all shapes fit"] if difference else []
