"""Which modules of a base model an adapter's config touches, decided exactly as PEFT decides it."""

import re
from collections.abc import Callable, Iterator

from adapter_store.formats.layout import Experts, PackLayout, Slice
from adapter_store.formats.names import spellings
from adapter_store.formats.patterns import layers_regex, target_regex
from adapter_store.formats.peft_config import PeftConfig

_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")

STACKED_PARAMETERS = ("gate_up_proj", "gate_up_proj", "down_proj")
"""The parameter of the base that holds each of an expert's projections, for all experts."""


def targeted_modules(config: PeftConfig, layout: PackLayout, tick: Callable[[], None]) -> set[str]:
    """The modules that the config touches, as modules or through their parameters.

    `tick` is called between matches, and may raise when they take too long.

    Raises:
        LorikeetError: INVALID_ARGUMENT when a pattern is malformed or too complex.
    """
    found: set[str] = set()
    for slice_ in layout.slices:
        if not slice_.is_expert and (
            any(is_targeted(config, path) for path in spellings(slice_.module))
            or is_parameter_targeted(config, slice_)
        ):
            found.add(slice_.module)
        tick()
    for experts in layout.experts.values():
        found.update(_targeted_experts(config, experts, tick))
    return found


def is_parameter_targeted(config: PeftConfig, slice_: Slice) -> bool:
    """True when PEFT would wrap the weight of this linear layer as a parameter."""
    return not slice_.is_embedding and any(
        config.parameters.mean(f"{path}.weight") for path in spellings(slice_.module)
    )


def _targeted_experts(config: PeftConfig, experts: Experts, tick: Callable[[], None]) -> Iterator[str]:
    # A single name means the same projection of every expert, or none: no need to look at each of them.
    means_all = not config.exclude_modules
    only_names = not isinstance(config.target_modules, str) and config.modules.are_single
    for index, paths in enumerate(stacked_paths(experts)):
        tick()
        if config.parameters.mean(paths[0]) or (
            means_all and any(is_targeted(config, path) for path in paths)
        ):
            yield from (triple[index].module for triple in experts.slices)
        elif not (means_all and only_names):
            for triple in experts.slices:
                if any(is_targeted(config, path) for path in spellings(triple[index].module)):
                    yield triple[index].module
                tick()


def stacked_paths(experts: Experts) -> list[tuple[str, ...]]:
    """For each projection the paths that stand for it in all experts: the parameter's, then others."""
    found = []
    for parameter, slice_ in zip(STACKED_PARAMETERS, experts.slices[0], strict=True):
        name = slice_.module.rpartition(".")[2]
        found.append((f"{experts.module}.{parameter}", *spellings(f"{experts.module}.{name}")))
    return found


def is_targeted(config: PeftConfig, module: str) -> bool:
    """True when PEFT would wrap this module of the base.

    Raises:
        LorikeetError: INVALID_ARGUMENT when a pattern is malformed or too complex.
    """
    if _is_excluded(config, module):
        return False
    targets = config.target_modules
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return module.rpartition(".")[2] not in ("lm_head", "embed_tokens")
        return target_regex(targets, "target_modules").fullmatch(module) is not None
    if config.modules.mean_exactly(module):
        return True
    return config.modules.mean(module) and _is_in_layers(config, module)


def names(target: str, module: str) -> bool:
    """True when an entry of a list of targets means this module: its whole path or its last parts."""
    return module == target or module.endswith(f".{target}")


def _is_excluded(config: PeftConfig, module: str) -> bool:
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        return target_regex(excluded, "exclude_modules").fullmatch(module) is not None
    return config.excluded.mean(module)


def _is_in_layers(config: PeftConfig, module: str) -> bool:
    if not config.layers_to_transform:
        return True
    regexes = [layers_regex(pattern, "layers_pattern") for pattern in config.layers_patterns] or [
        _FIRST_INDEX
    ]
    for regex in regexes:
        if match := regex.match(module):
            return int(match["idx"]) in config.layers_to_transform
    return False
