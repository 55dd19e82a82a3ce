"""Checkpoints with experts spell their tensors in several ways: here they become one.

Mixtral's were published as `block_sparse_moe.experts.3.w1` (gate), `w3` (up) and `w2` (down); transformers 5
calls them as those of other families, `mlp.experts.3.gate_proj`. Any family's experts may be stored one by
one or stacked, `mlp.experts.gate_up_proj`.
"""

import re
from collections.abc import Collection

from executor.model.config import ModelConfig

_MIXTRAL = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts\.\d+)\.(w[123])\.weight")
_STACKED = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj")


def canonical_names(stored: Collection[str], config: ModelConfig) -> dict[str, str]:
    """Canonical name -> the name in the checkpoint, of every tensor.

    Raises ValueError where two tensors are the same one by different names.
    """
    if config.experts is None:
        return {name: name for name in stored}
    names: dict[str, str] = {}
    for name in stored:
        canonical = _canonical(name)
        if canonical in names:
            raise ValueError(f"the checkpoint holds {canonical} twice: as {names[canonical]} and as {name}")
        names[canonical] = name
    return names


def stacked_layers(names: Collection[str]) -> set[int]:
    """Layers whose experts are stored all at once, by canonical names."""
    return {int(match[1]) for name in names if (match := _STACKED.fullmatch(name))}


def _canonical(name: str) -> str:
    name = name.replace(".block_sparse_moe.", ".mlp.")
    if match := _EXPERT.fullmatch(name):
        return f"{match[1]}.{_MIXTRAL[match[2]]}.weight"
    return name
