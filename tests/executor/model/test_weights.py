"""Loading checkpoints: whole, sharded, damaged, and ones that do not fit their config."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from executor.model.config import ModelConfig
from executor.model.parameters import MlpParameters, Parameters
from executor.model.weights import load_parameters
from tests.support.oracle_checkpoints import FAMILIES, MOE_FAMILIES, make_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "llama")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Parameters:
    return load_parameters(folder, ModelConfig.load(folder), dtype=dtype)


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES + MOE_FAMILIES)
def test_destinations_cover_every_element_once(family: str, tmp_path: Path) -> None:
    config = ModelConfig.load(make_checkpoint(tmp_path, family))
    parameters = Parameters.allocate(config, dtype=torch.float32, device=torch.device("cpu"))
    views = parameters.destinations(config)
    owners = [parameters.embed, parameters.norm] + ([] if config.tied_head else [parameters.head])
    for layer in parameters.layers:
        owners += [layer.input_norm, layer.post_attention_norm]
        owners += [norm for norm in (layer.q_norm, layer.k_norm) if norm is not None]
        linears = [layer.qkv, layer.o]
        if isinstance(layer.mlp, MlpParameters):
            linears += [layer.mlp.gate_up, layer.mlp.down]
        else:
            owners += [layer.mlp.router, *layer.mlp.experts]
            if layer.mlp.shared is not None and layer.mlp.shared_gate is not None:
                owners.append(layer.mlp.shared_gate)
                linears += [layer.mlp.shared.gate_up, layer.mlp.shared.down]
        for linear in linears:
            owners += [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
    for owner in owners:
        owner.zero_()
    for view in views.values():
        view.add_(1)
    assert all((owner == 1).all() for owner in owners)


def test_sharded_equals_whole(checkpoint: Path, tmp_path: Path) -> None:
    sharded = make_checkpoint(tmp_path / "sharded", "llama", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    config = ModelConfig.load(checkpoint)
    whole = load(checkpoint).destinations(config)
    parts = load(sharded).destinations(config)
    stored = load_file(checkpoint / "model.safetensors")
    assert whole.keys() == stored.keys()
    for name in whole:
        assert torch.equal(whole[name], stored[name]), name
        assert torch.equal(parts[name], stored[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_converts_to_the_compute_dtype(checkpoint: Path, dtype: torch.dtype) -> None:
    loaded = load(checkpoint, dtype).destinations(ModelConfig.load(checkpoint))
    stored = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(loaded[name], stored[name].to(dtype)) for name in stored)


def test_progress_reaches_the_total(checkpoint: Path) -> None:
    calls: list[tuple[int, int]] = []
    config = ModelConfig.load(checkpoint)
    load_parameters(
        checkpoint, config, dtype=torch.float32, progress=lambda done, total: calls.append((done, total))
    )
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert (
        calls[-1][0]
        == calls[-1][1]
        == sum(t.nbytes for t in load_file(checkpoint / "model.safetensors").values())
    )


def test_harmless_tensors_are_tolerated(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3")
    rewrite(
        folder,
        **{
            "lm_head.weight": torch.zeros(256, 64),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16),
            "model.rotary_emb.inv_freq": torch.zeros(16),
        },
    )
    parameters = load(folder)
    assert parameters.head is parameters.embed
    assert parameters.embed.any()


def test_names_and_shapes_are_checked(checkpoint: Path) -> None:
    rewrite(checkpoint, **{"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(ValueError, match=r"lacks 1 tensors .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(checkpoint)
    rewrite(checkpoint, **{"model.layers.1.mlp.up_proj.weight": torch.zeros(64, 128)})
    with pytest.raises(ValueError, match=r"up_proj.weight has shape \[64, 128\], .* \[128, 64\]"):
        load(checkpoint)
    rewrite(checkpoint, **{"model.layers.1.mlp.up_proj.weight": torch.zeros(128, 64, dtype=torch.int8)})
    with pytest.raises(ValueError, match="stored as I8"):
        load(checkpoint)
    rewrite(
        checkpoint,
        **{
            "model.layers.1.mlp.up_proj.weight": torch.zeros(128, 64),
            "model.layers.1.self_attn.q_norm.weight": torch.zeros(16),
        },
    )
    with pytest.raises(ValueError, match=r"1 tensors unknown to llama: model\.layers\.1\.self_attn\.q_norm"):
        load(checkpoint)


def test_damaged_files(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load(checkpoint)
    path.unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        load(checkpoint)
    index = checkpoint / "model.safetensors.index.json"
    for text, says in [
        ("{", "not a safetensors index"),
        ("{}", "not a safetensors index"),
        (json.dumps({"weight_map": {"a": "../../etc/passwd"}}), "not a file beside it"),
        (json.dumps({"weight_map": {"a": "model-00001.safetensors"}}), "which is missing"),
    ]:
        index.write_text(text)
        with pytest.raises(ValueError, match=says):
            load(checkpoint)
