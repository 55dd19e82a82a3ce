"""Which modules of a base model an adapter's config touches, decided exactly as PEFT decides it."""

import re

from adapter_store.formats.patterns import layers_regex, target_regex
from adapter_store.formats.peft_config import PeftConfig

_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")


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
    if module in targets:
        return True
    return any(names(target, module) for target in targets) and _is_in_layers(config, module)


def names(target: str, module: str) -> bool:
    """True when an entry of target_modules means this module: its whole path or its last parts."""
    return module == target or module.endswith(f".{target}")


def _is_excluded(config: PeftConfig, module: str) -> bool:
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        return target_regex(excluded, "exclude_modules").fullmatch(module) is not None
    return any(names(name, module) for name in excluded)


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
