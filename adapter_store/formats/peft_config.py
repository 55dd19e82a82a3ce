"""adapter_config.json: what it says about the arithmetic, or a refusal that names the option."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from adapter_store.formats.patterns import Endings, pattern_key_regex
from adapter_store.formats.strict_json import load_object, printable
from rpc.errors import LorikeetError, invalid_argument, unimplemented

# Keys that say how an adapter was trained or made, or that are read below; they need no handling.
_NEUTRAL = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "bias",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "alpha_pattern",
        "rank_pattern",
        "ensure_weight_tying",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "save_embedding_layers",
        "use_dora",
        "use_rslora",
    }
)

_UNSUPPORTED = {
    "alora_invocation_tokens": "activated LoRA is not supported",
    "trainable_token_indices": "trained token rows are not supported; train LoRA on embed_tokens instead",
    # PEFT resets it for linear layers, so that an adapter that has it was trained on others.
    "fan_in_fan_out": "transposed base weights (Conv1D) are not supported",
    "layer_replication": "a base with replicated layers is not supported",
    "use_qalora": "QA-LoRA is not supported",
}

# Ways of initialising that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, ...)
# train against a modified base, unless PEFT converted the adapter when it saved it, and then it wrote `true`.
_PLAIN_INITS = ("gaussian", "orthogonal", "eva")

_MAX_RANK = 1 << 16
# Each is tried on each module; trainers write one a module at most.
_MAX_PATTERNS = 4096


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The part of adapter_config.json that decides what an adapter computes and which modules it touches.

    `rank_pattern` and `alpha_pattern` keep the file's order: the first key that matches a module wins.
    """

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]
    target_parameters: tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: frozenset[int]
    layers_patterns: tuple[str, ...]
    ties_embeddings: bool
    use_dora: bool
    lora_bias: bool
    bias: str
    modules_to_save: tuple[str, ...]
    base_model: str
    peft_version: str

    @cached_property
    def modules(self) -> Endings:
        """Of target_modules, where it is a list."""
        return Endings(() if isinstance(self.target_modules, str) else self.target_modules)

    @cached_property
    def parameters(self) -> Endings:
        """Of target_parameters."""
        return Endings(self.target_parameters)

    @cached_property
    def excluded(self) -> Endings:
        """Of exclude_modules, where it is a list."""
        return Endings(() if isinstance(self.exclude_modules, str) else self.exclude_modules)

    def rank_of(self, module: str) -> int:
        """The rank that PEFT gives a module or parameter, by the path that the adapter knows it by."""
        key = _first_match(self.rank_pattern, module, "rank_pattern")
        return self.rank if key is None else self.rank_pattern[key]

    def scaling_of(self, module: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski, 2023)."""
        key = _first_match(self.alpha_pattern, module, "alpha_pattern")
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def unused_patterns(self, modules: list[str], tick: Callable[[], None]) -> list[tuple[str, str]]:
        """(option, key) of each pattern that decides nothing for any of these modules.

        `tick` is called between matches, and may raise when they take too long.
        """
        unused = []
        for option, patterns in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            used = {_first_match(patterns, module, option, tick) for module in modules}
            unused += [(option, key) for key in patterns if key not in used]
        return unused


def _first_match(
    patterns: Mapping[str, Any], module: str, option: str, tick: Callable[[], None] = lambda: None
) -> str | None:
    for key in patterns:
        if pattern_key_regex(key, option).match(module):
            return key
        tick()
    return None


def parse_peft_config(data: bytes) -> PeftConfig:
    """Reads adapter_config.json.

    Raises:
        LorikeetError: INVALID_ARGUMENT when it is malformed, UNIMPLEMENTED when it asks for arithmetic that
            is not done here; the message names the option.
    """
    config = _load_json(data)
    if config.get("peft_type") != "LORA":
        raise unimplemented(
            "PEFT_TYPE", f'peft_type is {_shown(config.get("peft_type"))}; only "LORA" adapters are served'
        )
    _refuse_unsupported(config)
    if _flag(config, "use_dora") and _flag(config, "lora_bias"):
        raise _bad("lora_bias and use_dora exclude each other, in PEFT too")
    return PeftConfig(
        rank=_integer(config, "r"),
        alpha=_number(config, "lora_alpha"),
        use_rslora=_flag(config, "use_rslora"),
        rank_pattern=_pattern(config, "rank_pattern", _as_rank),
        alpha_pattern=_pattern(config, "alpha_pattern", _as_number),
        target_modules=_names(config, "target_modules"),
        target_parameters=_list(config, "target_parameters"),
        exclude_modules=_names(config, "exclude_modules"),
        layers_to_transform=frozenset(_layers(config)),
        layers_patterns=_as_tuple(_names(config, "layers_pattern")),
        ties_embeddings=_flag(config, "ensure_weight_tying"),
        use_dora=_flag(config, "use_dora"),
        lora_bias=_flag(config, "lora_bias"),
        bias=_bias(config),
        modules_to_save=_list(config, "modules_to_save"),
        base_model=_text(config, "base_model_name_or_path"),
        peft_version=_text(config, "peft_version"),
    )


def _load_json(data: bytes) -> dict[str, Any]:
    try:
        return load_object(data)
    except ValueError as error:
        raise _bad(f"not valid JSON: {error}") from error


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    for option, advice in _UNSUPPORTED.items():
        # An empty list of invocation tokens still makes PEFT build an activated LoRA; only null switches it
        # off.
        on = (
            config.get(option) is not None
            if option == "alora_invocation_tokens"
            else bool(config.get(option))
        )
        if on:
            raise _unsupported(option, config[option], advice)
    init = config.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool) or init in _PLAIN_INITS):
        raise _unsupported(
            "init_lora_weights",
            init,
            "such an adapter fits a modified base; save it with path_initial_model_for_weight_conversion",
        )
    for option, value in config.items():
        if option not in _NEUTRAL and option not in _UNSUPPORTED and value:
            raise _unsupported(
                option, value, "this option is not known here, so its arithmetic would be lost"
            )


def _integer(config: Mapping[str, Any], option: str) -> int:
    return _as_rank(option, _required(config, option))


def _number(config: Mapping[str, Any], option: str) -> float:
    return _as_number(option, _required(config, option))


def _required(config: Mapping[str, Any], option: str) -> Any:
    if config.get(option) is None:
        raise _bad(f"{option} is missing; it decides the scaling, so no default is assumed")
    return config[option]


def _as_rank(option: str, value: Any) -> int:
    if type(value) is not int or not 0 < value <= _MAX_RANK:
        raise _bad(f"{option} is {_shown(value)}; a rank is a whole number from 1 to {_MAX_RANK}")
    return value


def _as_number(option: str, value: Any) -> float:
    # The scaling is a float32 in the pack, and alpha / rank must stay finite there.
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise _bad(f"{option} is {_shown(value)}; it must be a finite number")
    return float(value)


def _pattern(config: Mapping[str, Any], option: str, convert: Any) -> dict[str, Any]:
    patterns = config.get(option) or {}
    if not isinstance(patterns, dict):
        raise _bad(f"{option} is {_shown(patterns)}; it must map module patterns to numbers")
    if len(patterns) > _MAX_PATTERNS:
        raise _bad(f"{option} has {len(patterns)} patterns; up to {_MAX_PATTERNS} are read")
    for key in patterns:
        pattern_key_regex(key, option)
    return {key: convert(f"{option}[{key!r}]", value) for key, value in patterns.items()}


def _names(config: Mapping[str, Any], option: str) -> str | tuple[str, ...]:
    value = config.get(option)
    if value is None:
        return ()
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _bad(f"{option} is {_shown(value)}; it must be a string or a list of strings")
    return tuple(dict.fromkeys(value))


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return ((names,) if names else ()) if isinstance(names, str) else names


def _layers(config: Mapping[str, Any]) -> list[int]:
    value = config.get("layers_to_transform")
    layers = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(layer) is int for layer in layers):
        raise _bad(f"layers_to_transform is {_shown(value)}; it must be a layer index or a list of them")
    return layers


def _flag(config: Mapping[str, Any], option: str) -> bool:
    value = config.get(option)
    if value is not None and not isinstance(value, bool):
        raise _bad(f"{option} is {_shown(value)}; it must be true or false")
    return bool(value)


def _bias(config: Mapping[str, Any]) -> str:
    value = config.get("bias")
    if value is not None and value not in ("none", "all", "lora_only"):
        raise _bad(f"bias is {_shown(value)}; it must be none, all or lora_only")
    return value or "none"


def _list(config: Mapping[str, Any], option: str) -> tuple[str, ...]:
    value = _names(config, option)
    if isinstance(value, str) or not all(value):
        raise _bad(f"{option} is {_shown(value)}; it must be a list of names")
    return value


def _text(config: Mapping[str, Any], option: str) -> str:
    value = config.get(option)
    return printable(value) if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:100] + "..."


def _bad(what: str) -> LorikeetError:
    return invalid_argument("BAD_CONFIG", f"adapter_config.json: {what}")


def _unsupported(option: str, value: Any, advice: str) -> LorikeetError:
    option = printable(option)
    message = f"adapter_config.json: {option}={_shown(value)}: {advice}"
    return unimplemented("UNSUPPORTED_OPTION", message, option=option)
