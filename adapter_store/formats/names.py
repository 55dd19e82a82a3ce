"""What the tensors of a PEFT adapter are called, and what each name stands for."""

from dataclasses import dataclass
from enum import Enum

from rpc.errors import invalid_argument, unimplemented

_PREFIX = "base_model.model."


class Part(Enum):
    """What a tensor is to its module; the value is for messages."""

    A = "lora_A"
    B = "lora_B"
    BASE_COPY = "base_layer"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRole:
    module: str
    part: Part
    is_embedding: bool


_SUFFIXES = (
    (".lora_A.weight", Part.A, False),
    (".lora_B.weight", Part.B, False),
    (".lora_embedding_A", Part.A, True),
    (".lora_embedding_B", Part.B, True),
    (".base_layer.weight", Part.BASE_COPY, False),
)

_UNSUPPORTED = (
    (".lora_magnitude_vector", "use_dora", "the magnitude of a DoRA adapter"),
    (".lora_B.bias", "lora_bias", "a bias on lora_B"),
    (".lora_A.bias", "lora_bias", "a bias on lora_A"),
    (".base_layer.bias", "bias", "a trained bias of the base"),
    (".trainable_tokens_delta", "trainable_token_indices", "trained token embeddings"),
    (".bias", "bias", "a trained bias of the base"),
    (".weight", "modules_to_save", "a fully trained module"),
)


def role_of(name: str) -> TensorRole:
    """The module and part that a tensor's name means.

    Raises:
        LorikeetError: UNIMPLEMENTED for tensors of PEFT that are not served yet, naming the option that makes
            them; INVALID_ARGUMENT for a name that PEFT does not write.
    """
    if not name.startswith(_PREFIX):
        raise invalid_argument(
            "UNKNOWN_TENSOR", f"{name}: PEFT's names start with {_PREFIX!r}; is this a PEFT adapter?"
        )
    path = name.removeprefix(_PREFIX)
    if ".experts.lora_" in path or ".experts.base_layer.lora_" in path:
        raise unimplemented(
            "UNSUPPORTED_TENSOR",
            f"{name}: LoRA on fused experts (target_parameters) is not served",
            option="target_parameters",
        )
    for suffix, part, is_embedding in _SUFFIXES:
        if path.endswith(suffix):
            return TensorRole(module=path.removesuffix(suffix), part=part, is_embedding=is_embedding)
    for suffix, option, what in _UNSUPPORTED:
        if path.endswith(suffix) and ".lora_" not in path.removesuffix(suffix):
            raise unimplemented(
                "UNSUPPORTED_TENSOR", f"{name} is {what}, which is not served ({option})", option=option
            )
    raise invalid_argument(
        "UNKNOWN_TENSOR", f"{name}: not a name that PEFT gives to a tensor of a LoRA adapter"
    )
