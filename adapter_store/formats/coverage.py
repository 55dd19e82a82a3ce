"""Compares what an adapter's config says that it touches with what its tensors touch: it must be the same."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import NamedTuple

from adapter_store.formats.layout import PackLayout, endings_of
from adapter_store.formats.names import spellings
from adapter_store.formats.peft_config import PeftConfig
from adapter_store.formats.targets import names, stacked_paths, targeted_modules
from rpc.errors import invalid_argument, unimplemented

_PATTERN_SECONDS = 2.0


def saved_modules(config: PeftConfig, layout: PackLayout) -> frozenset[str]:
    """The modules that modules_to_save means: PEFT looks at how their paths end.

    Raises:
        LorikeetError: UNIMPLEMENTED for modules that cannot be replaced.
    """
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


class Coverage(NamedTuple):
    """The modules that the config targets, and what is worth knowing of that."""

    targeted: frozenset[str]
    notes: tuple[str, ...]


def check_targets(
    paths: Mapping[str, str], saved: Set[str], config: PeftConfig, layout: PackLayout
) -> Coverage:
    """Compares the modules that the config targets with those that have a LoRA.

    Args:
        paths: what the config knows each module by that has a LoRA.
        saved: modules that are saved whole; PEFT puts no LoRA on them.

    Raises:
        LorikeetError: INVALID_ARGUMENT, naming the module, or the name or pattern that means nothing.
    """
    tick = _deadline()
    present = paths.keys()
    targeted = targeted_modules(config, layout, tick) - saved
    no_modules = _experts_that_are_no_modules(targeted, present, config, layout)
    targeted -= no_modules
    missing = targeted - present
    if is_all_linear(config):
        # PEFT writes the names instead; others mean by it what they train, which seldom has the routers.
        missing = {module for module in missing if not module.endswith((".mlp.gate", ".shared_expert_gate"))}
    _refuse_partial(missing, present, layout)
    refuse_missing(missing, "the config targets it but the adapter has no tensors for it")
    if config.ties_embeddings and any(names("embed_tokens", module) for module in targeted):
        targeted |= {module for module in present if names("lm_head", module)}
    refuse_stray(present - targeted, "its config does not target it")
    _check_spelling(sorted(set(paths.values())), config, layout, tick)
    note = "no expert has LoRA: target_modules was taken to mean other modules, as with transformers 5"
    return Coverage(frozenset(targeted), (note,) if no_modules else ())


def _experts_that_are_no_modules(
    targeted: Set[str], present: Collection[str], config: PeftConfig, layout: PackLayout
) -> frozenset[str]:
    """Those that the config seems to target, but did not: with transformers 5 experts are no modules.

    gate_proj then means that of a shared expert, or of a dense layer, only. It is so where these have LoRA,
    by every name in question, and no expert has.
    """
    experts = frozenset(module for module in targeted if layout.by_module[module].is_expert)
    if not experts or any(layout.by_module[module].is_expert for module in present):
        return frozenset()
    if any(config.parameters.mean(paths[0]) for e in layout.experts.values() for paths in stacked_paths(e)):
        return frozenset()
    others = {module.rpartition(".")[2] for module in present}
    return experts if {module.rpartition(".")[2] for module in experts} <= others else frozenset()


def is_all_linear(config: PeftConfig) -> bool:
    return isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear"


def _check_spelling(
    paths: list[str], config: PeftConfig, layout: PackLayout, tick: Callable[[], None]
) -> None:
    """Refuses names and patterns that mean nothing."""
    if not isinstance(config.target_modules, str):
        unknown = [target for target in config.target_modules if target not in layout.endings]
        if unknown:
            other = _other_endings(layout)
            for target in unknown:
                if target not in other:
                    raise _unknown_target("target_modules", target, layout)
    if config.target_parameters:
        known = _parameter_endings(layout)
        for target in config.target_parameters:
            if target not in known:
                raise _unknown_target("target_parameters", target, layout)
    for option, key in config.unused_patterns(paths, tick):
        raise invalid_argument(
            "UNUSED_PATTERN",
            f"{option}: {key[:100]!r} decides nothing for any module of this adapter; correct or remove it",
            option=option,
        )


def _other_endings(layout: PackLayout) -> frozenset[str]:
    """Of modules by older names, and of experts by names that stand for all of them."""
    paths = [path for module in layout.by_module for path in spellings(module)[1:]]
    paths += [path for experts in layout.experts.values() for some in stacked_paths(experts) for path in some]
    return endings_of(paths)


def _parameter_endings(layout: PackLayout) -> frozenset[str]:
    paths = [
        f"{slice_.module}.weight" for slice_ in layout.slices if not (slice_.is_expert or slice_.is_embedding)
    ]
    paths += [some[0] for experts in layout.experts.values() for some in stacked_paths(experts)]
    return endings_of(paths)


def _unknown_target(option: str, target: str, layout: PackLayout) -> Exception:
    return invalid_argument(
        "UNKNOWN_TARGET",
        f"{option}: {target[:100]!r} names nothing that {layout.base_name!r} can adapt",
        option=option,
    )


def _refuse_partial(missing: Set[str], present: Collection[str], layout: PackLayout) -> None:
    """Some experts without the others, where the config does not say that only those were trained."""
    if not missing:
        return
    for experts in layout.experts.values():
        modules = [slice_.module for triple in experts.slices for slice_ in triple]
        lacking = [module for module in modules if module in missing]
        found = sum(module in present for module in modules)
        if lacking and found:
            raise invalid_argument(
                "PARTIAL_EXPERTS",
                f"{lacking[0]}: the config targets it but the adapter has no tensors for it, only for "
                f"{found} of {found + len(lacking)} projections of {experts.module}. Save all experts, or "
                "name those that were trained, and no others, in target_modules",
                module=lacking[0],
            )


def refuse_missing(missing: Set[str], why: str) -> None:
    """Raises LorikeetError for the first of the modules, if there are any."""
    if missing:
        first, more = min(missing), len(missing) - 1
        raise invalid_argument(
            "MISSING_TENSORS",
            f"{first}: {why}" + (f" (nor for {more} other modules)" if more else ""),
            module=first,
        )


def refuse_stray(stray: Iterable[str], why: str) -> None:
    """Raises LorikeetError for the first of the modules, if there are any."""
    if first := min(stray, default=""):
        raise invalid_argument(
            "UNTARGETED_MODULE",
            f"{first}: the adapter has tensors for it, but {why} (PEFT would drop them)",
            module=first,
        )


def _deadline() -> Callable[[], None]:
    # Of this thread's own work: on a machine that stands still no pattern is to blame.
    end = time.thread_time() + _PATTERN_SECONDS

    def tick() -> None:
        if time.thread_time() > end:
            raise invalid_argument("PATTERN_TOO_COMPLEX", "the config's patterns take too long to match")

    return tick
