"""The spellings of experts' tensors: one by one or stacked, and Mixtral's own names."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from executor.model.config import ModelConfig
from executor.model.weights import load_parameters
from tests.support.oracle_checkpoints import MOE_FAMILIES, make_checkpoint

Rewrite = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def loaded(folder: Path) -> dict[str, Tensor]:
    config = ModelConfig.load(folder)
    return load_parameters(folder, config, dtype=torch.float32).destinations(config)


def rewrite(folder: Path, change: Rewrite) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def canonical(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mixtral's names as those of other families."""

    def name(old: str) -> str:
        for theirs, ours in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            old = old.replace(f".{theirs}.", f".{ours}.")
        return old.replace("block_sparse_moe", "mlp")

    return {name(old): tensor for old, tensor in tensors.items()}


def stacked(*layers: int) -> Rewrite:
    """Experts of some layers as transformers 5 holds them in memory."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = canonical(tensors)
        for layer in layers:
            path = f"model.layers.{layer}.mlp.experts"
            count = sum(name.startswith(f"{path}.") for name in tensors) // 3
            gate, up, down = (
                torch.stack([tensors.pop(f"{path}.{e}.{part}_proj.weight") for e in range(count)])
                for part in ("gate", "up", "down")
            )
            tensors[f"{path}.gate_up_proj"] = torch.cat((gate, up), dim=1)
            tensors[f"{path}.down_proj"] = down
        return tensors

    return change


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_every_spelling_is_the_same_model(family: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, family)
    expected = canonical(load_file(folder / "model.safetensors"))
    sparse = [i for i in range(3) if f"model.layers.{i}.mlp.experts.0.up_proj.weight" in expected]
    views = loaded(folder)
    assert views.keys() == expected.keys()
    for change in (None, canonical, stacked(sparse[-1]), stacked(*sparse[:-1])):
        if change is not None:
            rewrite(folder, change)
        views = loaded(folder)
        assert all(torch.equal(views[name], expected[name]) for name in expected)


def test_what_is_missing_or_too_much_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mixtral")
    whole = load_file(folder / "model.safetensors")
    expert = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    canonical_name = "model.layers.1.mlp.experts.2.up_proj.weight"

    rewrite(folder, lambda tensors: {name: t for name, t in tensors.items() if name != expert})
    with pytest.raises(ValueError, match=f"lacks 1 tensors that mixtral needs: {canonical_name}"):
        loaded(folder)
    rewrite(folder, lambda _: whole | {canonical_name: whole[expert].clone()})
    with pytest.raises(ValueError, match=f"holds {canonical_name} twice"):
        loaded(folder)
    rewrite(folder, lambda _: whole | {"model.layers.0.mlp.experts.down_proj": torch.zeros(4, 64, 72)})
    with pytest.raises(ValueError, match=r"lacks 1 tensors .*layers\.0\.mlp\.experts\.gate_up_proj"):
        loaded(folder)
    rewrite(folder, lambda _: whole | {"model.layers.0.block_sparse_moe.experts.4.w1.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"1 tensors unknown to mixtral: .*experts\.4\.gate_proj"):
        loaded(folder)


def test_stacks_that_lie_the_other_way_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "olmoe")

    def transposed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = stacked(0, 1)(tensors)
        name = "model.layers.0.mlp.experts.down_proj"
        return tensors | {name: tensors[name].transpose(1, 2).contiguous()}

    rewrite(folder, transposed)
    with pytest.raises(ValueError, match=r"down_proj has shape \[8, 32, 64\], .* \[8, 64, 32\]"):
        loaded(folder)
