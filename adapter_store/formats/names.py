"""What the tensors of a PEFT adapter are called, and what each name stands for."""

from dataclasses import dataclass
from enum import Enum

from rpc.errors import invalid_argument, unimplemented

_PREFIX = "base_model.model."


class Part(Enum):
    """What a tensor is to its module; the value is for messages."""

    A = "lora_A"
    B = "lora_B"
    MAGNITUDE = "lora_magnitude_vector"
    LORA_BIAS = "bias on lora_B"
    BIAS = "bias"
    WEIGHT = "weight"
    BASE_COPY = "base_layer"


LORA_PARTS = frozenset({Part.A, Part.B, Part.MAGNITUDE, Part.LORA_BIAS})
"""The parts that only a module that the config targets can have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRole:
    """The module and part that a name means.

    `is_embedding` tells how an embedding's LoRA is called; `is_wrapped` that the module was inside a LoRA.
    """

    module: str
    part: Part
    is_embedding: bool = False
    is_wrapped: bool = False


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
    if ".experts.lora_" in path or ".experts.base_layer.lora_" in path:
        raise unimplemented(
            "UNSUPPORTED_TENSOR",
            f"{name}: LoRA on fused experts (target_parameters) is not served",
            option="target_parameters",
            tensor=name,
        )
    if path.endswith(".trainable_tokens_delta"):
        raise unimplemented(
            "UNSUPPORTED_TENSOR",
            f"{name} holds trained token embeddings, which are not served (trainable_token_indices)",
            option="trainable_token_indices",
            tensor=name,
        )
    for suffix, part, is_embedding, is_wrapped in _SUFFIXES:
        module = path.removesuffix(suffix)
        if module != path and module and ".lora_" not in module:
            return TensorRole(module=module, part=part, is_embedding=is_embedding, is_wrapped=is_wrapped)
    raise invalid_argument(
        "UNKNOWN_TENSOR",
        f"{name}: not a name that PEFT gives to a tensor of a LoRA adapter",
        tensor=name,
    )
