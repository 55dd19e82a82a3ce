"""Matches an adapter's tensors to places of the base model, and refuses what does not fit exactly."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapter_store.formats.adapted import AdaptedSlice
from adapter_store.formats.fitting import check_weight, fit_slice, other_base
from adapter_store.formats.layout import PackLayout, Slice
from adapter_store.formats.names import LORA_PARTS, Part, TensorRole, role_of
from adapter_store.formats.peft_config import PeftConfig
from adapter_store.formats.safetensors_files import TensorEntry
from adapter_store.formats.targets import is_targeted, names
from rpc.errors import invalid_argument, unimplemented

_PATTERN_SECONDS = 2.0

_Parts = dict[str, dict[Part, TensorEntry]]


@dataclass(frozen=True, kw_only=True)
class Match:
    """An adapter that fits: its slices in the layout's order, and what is worth knowing about the rest."""

    slices: tuple[AdaptedSlice, ...]
    notes: tuple[str, ...]


def match_adapter(entries: Mapping[str, TensorEntry], config: PeftConfig, layout: PackLayout) -> Match:
    """Finds the place of every tensor, by headers alone.

    Raises:
        LorikeetError: INVALID_ARGUMENT or UNIMPLEMENTED, naming the module or tensor that does not fit and
        why.
    """
    notes: list[str] = []
    parts: _Parts = {}
    wrapped: dict[str, bool] = {}
    saved = _saved_modules(config, layout)
    for name, entry in sorted(entries.items()):
        role = role_of(name)
        slice_ = _slice_of(role, entry, layout, config)
        if role.part is Part.BASE_COPY:
            check_weight(slice_, entry, config, layout)
            notes.append(f"{role.module}: the copy of the base's weight was left out; the base's own is used")
            continue
        if role.part in parts.setdefault(role.module, {}):
            raise _duplicate(role, entry)
        parts[role.module][role.part] = entry
        if role.part is Part.BIAS:
            wrapped[role.module] = role.is_wrapped
    if not parts:
        raise invalid_argument("NO_TENSORS", "the adapter has no LoRA tensors at all")
    targeted = _check_targets(parts, saved, config, layout)
    _check_saved(parts, saved)
    _check_biases(parts, wrapped, targeted, saved, config, layout)
    slices = tuple(
        fit_slice(slice_, parts[slice_.module], config, layout)
        for slice_ in layout.slices
        if slice_.module in parts
    )
    notes += _transposed_note(slices) + _base_note(config, layout)
    return Match(slices=slices, notes=tuple(notes))


def _saved_modules(config: PeftConfig, layout: PackLayout) -> frozenset[str]:
    """The modules that modules_to_save means: PEFT looks at how their paths end."""
    saved: set[str] = set()
    for name in config.modules_to_save:
        meant = [slice_ for slice_ in layout.slices if slice_.module.endswith(name)]
        fixed = [slice_.module for slice_ in meant if not slice_.is_replaceable]
        if fixed or not meant:
            raise unimplemented(
                "UNSUPPORTED_OPTION",
                f"adapter_config.json: modules_to_save: {name[:100]!r} "
                + (f"means {fixed[0]}" if fixed else f"names nothing that {layout.base_name!r} can replace")
                + "; only lm_head and embed_tokens may be fully trained, train LoRA on the rest",
                option="modules_to_save",
            )
        saved |= {slice_.module for slice_ in meant}
    if config.ties_embeddings and any(names("embed_tokens", module) for module in saved):
        saved |= {slice_.module for slice_ in layout.slices if names("lm_head", slice_.module)}
    return frozenset(saved)


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
        raise invalid_argument(
            "UNKNOWN_MODULE",
            f"{entry.name}: the base {layout.base_name!r} has no module {role.module} that can carry a LoRA"
            + other_base(config, layout),
            module=role.module,
        )
    if role.part is Part.BASE_COPY and role.module.rpartition(".")[2] not in ("lm_head", "embed_tokens"):
        raise invalid_argument("UNKNOWN_TENSOR", f"{entry.name}: a copy of a base weight has no meaning here")
    if role.part in (Part.A, Part.B) and role.is_embedding != slice_.is_embedding:
        kind = "an embedding" if slice_.is_embedding else "a linear layer"
        raise invalid_argument("UNKNOWN_TENSOR", f"{entry.name}: {role.module} is {kind} of this base")
    return slice_


def _check_targets(
    parts: _Parts, saved: frozenset[str], config: PeftConfig, layout: PackLayout
) -> frozenset[str]:
    """Compares the modules that the config targets with those that have a LoRA; returns the former."""
    tick = _deadline()
    present = {module for module, found in parts.items() if not LORA_PARTS.isdisjoint(found)}
    targeted: set[str] = set()
    for slice_ in layout.slices:
        # PEFT puts no LoRA on what it saves whole.
        if slice_.module not in saved and is_targeted(config, slice_.module):
            targeted.add(slice_.module)
        tick()
    _refuse_missing(targeted - present, "target_modules names it but the adapter has no tensors for it")
    if config.ties_embeddings and any(names("embed_tokens", module) for module in targeted):
        targeted |= {module for module in present if names("lm_head", module)}
    _refuse_stray(present - targeted, "its config does not target it")
    _check_spelling(sorted(present), config, layout, tick)
    return frozenset(targeted)


def _check_spelling(
    present: list[str], config: PeftConfig, layout: PackLayout, tick: Callable[[], None]
) -> None:
    """Refuses names and patterns that mean nothing."""
    if not isinstance(config.target_modules, str):
        for target in config.target_modules:
            if not any(names(target, module) for module in layout.by_module):
                raise invalid_argument(
                    "UNKNOWN_TARGET",
                    f"target_modules: {target[:100]!r} names nothing that {layout.base_name!r} can adapt",
                    option="target_modules",
                )
            tick()
    for option, key in config.unused_patterns(present, tick):
        raise invalid_argument(
            "UNUSED_PATTERN",
            f"{option}: {key[:100]!r} decides nothing for any module of this adapter; correct or remove it",
            option=option,
        )


def _check_saved(parts: _Parts, saved: frozenset[str]) -> None:
    present = {module for module, found in parts.items() if Part.WEIGHT in found}
    _refuse_missing(saved - present, "modules_to_save names it but the adapter has no weight for it")
    _refuse_stray(present - saved, "its config does not save it whole")


def _check_biases(
    parts: _Parts,
    wrapped: Mapping[str, bool],
    targeted: frozenset[str],
    saved: frozenset[str],
    config: PeftConfig,
    layout: PackLayout,
) -> None:
    """Trained biases must be where the config's `bias`, or a module that is saved whole, puts them."""
    for module, is_wrapped in wrapped.items():
        if not layout.by_module[module].has_bias:
            raise invalid_argument(
                "NO_BIAS", f"{module}: the adapter brings a bias, the base's has none", module=module
            )
        if is_wrapped != (module in targeted):
            raise invalid_argument(
                "UNKNOWN_TENSOR",
                f"{parts[module][Part.BIAS].name}: not where PEFT keeps the bias of a module that is "
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
    _refuse_missing(due - wrapped.keys(), f"the adapter has no bias for it (bias={config.bias!r})")
    if stray := sorted(wrapped.keys() - due):
        raise invalid_argument(
            "OPTION_MISMATCH",
            f"{stray[0]}: the adapter has a bias for it, which its config does not train "
            f"(bias={config.bias!r})",
            option="bias",
            module=stray[0],
        )


def _refuse_missing(missing: set[str] | frozenset[str], why: str) -> None:
    if missing:
        first, more = min(missing), len(missing) - 1
        raise invalid_argument(
            "MISSING_TENSORS",
            f"{first}: {why}" + (f" (nor for {more} other modules)" if more else ""),
            module=first,
        )


def _refuse_stray(stray: set[str], why: str) -> None:
    if stray:
        first = min(stray)
        raise invalid_argument(
            "UNTARGETED_MODULE",
            f"{first}: the adapter has tensors for it, but {why} (PEFT would drop them)",
            module=first,
        )


def _duplicate(role: TensorRole, entry: TensorEntry) -> Exception:
    return invalid_argument(
        "DUPLICATE_TENSOR",
        f"{entry.name}: {role.module} has two tensors that are its {role.part.value}",
        module=role.module,
    )


def _deadline() -> Callable[[], None]:
    end = time.monotonic() + _PATTERN_SECONDS

    def tick() -> None:
        if time.monotonic() > end:
            raise invalid_argument("PATTERN_TOO_COMPLEX", "the config's patterns take too long to match")

    return tick


def _transposed_note(slices: tuple[AdaptedSlice, ...]) -> list[str]:
    turned = [
        adapted.slice.module for adapted in slices if adapted.is_a_transposed or adapted.is_b_transposed
    ]
    if not turned:
        return []
    more = f" and {len(turned) - 1} other modules" if len(turned) > 1 else ""
    return [f"{turned[0]}{more}: lora_A or lora_B is stored transposed; turned round by its shape"]


def _base_note(config: PeftConfig, layout: PackLayout) -> list[str]:
    # Names prove nothing (a folder may be called anything), so a base of the same shapes is let through, but
    # said.
    difference = other_base(config, layout)
    return [difference.removeprefix("; ") + "; all shapes fit"] if difference else []
