"""What the tensors of a PEFT adapter are called, and what each name stands for."""

import re
from enum import Enum, StrEnum
from functools import lru_cache
from typing import NamedTuple

from rpc.errors import invalid_argument, unimplemented

_PREFIX = "base_model.model."

# Transformers 4 called Mixtral's experts so, and as adapters were saved then, they are still called.
MIXTRAL_BLOCK = ".block_sparse_moe."
MLP_BLOCK = ".mlp."
_EXPERT_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_OLD_NAMES = {long: short for short, long in _EXPERT_NAMES.items()}
_EXPERTS = re.compile(r"(.+\.experts)(?:\.(\d+)(?=\.))?(?:\.(\w+))?")


class Part(StrEnum):
    """What a tensor is to its module; the value is for messages."""

    __hash__ = str.__hash__  # Enum's own is a Python function, and there are many tensors

    A = "lora_A"
    B = "lora_B"
    MAGNITUDE = "lora_magnitude_vector"
    LORA_BIAS = "bias on lora_B"
    BIAS = "bias"
    WEIGHT = "weight"
    BASE_COPY = "base_layer"


LORA_PARTS = frozenset({Part.A, Part.B, Part.MAGNITUDE, Part.LORA_BIAS})
"""The parts that only a module that the config targets can have."""


class Stack(Enum):
    """What a tensor for all experts of a layer is for; the value is what its name has behind "experts".

    PEFT wraps the parameters of a module one around another, so that its names do not say which they are: the
    one that the module has last is outermost.
    """

    OUTER = ""
    INNER = "base_layer"
    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"
    GATE_UP = "gate_up_proj"


class TensorRole(NamedTuple):
    """The module and part that a name means.

    `module` is the base's name for it; `written` the adapter's, in whose words its config speaks.
    `is_embedding` tells how an embedding's LoRA is called; `is_wrapped` that the module was inside a LoRA.
    Where `stack` is there, the module is all experts of a layer.
    """

    module: str
    part: Part
    written: str
    is_embedding: bool = False
    is_wrapped: bool = False
    stack: Stack | None = None


# The first that fits decides: suffix, part, is_embedding, is_wrapped.
_SUFFIXES = (
    (".lora_A.weight", Part.A, False, True),
    (".lora_B.weight", Part.B, False, True),
    (".lora_embedding_A", Part.A, True, True),
    (".lora_embedding_B", Part.B, True, True),
    (".lora_magnitude_vector", Part.MAGNITUDE, False, True),
    (".lora_B.bias", Part.LORA_BIAS, False, True),
    (".base_layer.weight", Part.BASE_COPY, False, True),
    (".base_layer.bias", Part.BIAS, False, True),
    (".bias", Part.BIAS, False, False),
    (".weight", Part.WEIGHT, False, False),
)


def role_of(name: str) -> TensorRole:
    """The module and part that a tensor's name means.

    Raises:
        LorikeetError: UNIMPLEMENTED for tensors of PEFT that are not served yet, naming the option that makes
            them; INVALID_ARGUMENT for a name that PEFT does not write.
    """
    if not name.startswith(_PREFIX):
        raise invalid_argument(
            "UNKNOWN_TENSOR",
            f"{name}: PEFT's names start with {_PREFIX!r}; is this a PEFT adapter?",
            tensor=name,
        )
    path = name.removeprefix(_PREFIX)
    if path.endswith(".trainable_tokens_delta"):
        raise unimplemented(
            "UNSUPPORTED_TENSOR",
            f"{name} holds trained token embeddings, which are not served (trainable_token_indices)",
            option="trainable_token_indices",
            tensor=name,
        )
    for suffix, part, is_embedding, is_wrapped in _SUFFIXES:
        written = path.removesuffix(suffix)
        if written != path and written and ".lora_" not in written:
            module, stack = _base_name(written)
            return TensorRole(
                module=module,
                part=part,
                written=written,
                is_embedding=is_embedding,
                is_wrapped=is_wrapped,
                stack=stack,
            )
    raise invalid_argument(
        "UNKNOWN_TENSOR",
        f"{name}: not a name that PEFT gives to a tensor of a LoRA adapter",
        tensor=name,
    )


@lru_cache(maxsize=64)  # the tensors of a module come one after another
def _base_name(written: str) -> tuple[str, Stack | None]:
    module = written.replace(MIXTRAL_BLOCK, MLP_BLOCK)
    found = _EXPERTS.fullmatch(module) if ".experts" in module else None
    if found is None:
        return module, None
    experts, expert, name = found.groups()
    name = _EXPERT_NAMES.get(name or "", name or "")
    if expert is not None:
        return f"{experts}.{expert}.{name}", None
    if name in _STACKS:
        return experts, Stack(name)
    return module, None


_STACKS = frozenset(stack.value for stack in Stack)


def spellings(module: str) -> tuple[str, ...]:
    """The paths that adapters of any release know a module of the base by, its own first."""
    if ".experts" not in module and not module.endswith(".mlp.gate"):
        return (module,)
    head, _, name = module.replace(MLP_BLOCK, MIXTRAL_BLOCK).rpartition(".")
    return module, f"{head}.{_OLD_NAMES.get(name, name)}"
