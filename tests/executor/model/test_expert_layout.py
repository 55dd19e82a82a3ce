"""Slices of layers with experts: their order, their indices, and what they take."""

import pytest
import torch

from executor.model.config import ModelConfig
from executor.model.layout import (
    ExpertSlices,
    MlpSlices,
    build_layout,
    embedding_index,
    head_slices,
    layer_slices,
    named_slices,
)
from executor.model.slots import AdapterPool
from lorikeet.v1 import layout_pb2

CONFIG = ModelConfig.parse(
    {
        "model_type": "qwen2_moe",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 56,
        "mlp_only_layers": [1],
    },
    {},
)
FIRST_OF_LAYER = (0, 24, 31)


def test_slices_of_a_layer_with_experts_come_in_order() -> None:
    slices = named_slices(CONFIG)
    path = "model.layers.2."
    modules = [named.module.removeprefix(path) for named in slices if named.module.startswith(path)]
    assert modules == [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        "mlp.gate",
        *(f"mlp.experts.{e}.{name}_proj" for e in range(5) for name in ("gate", "up", "down")),
        *(f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")),
        "mlp.shared_expert_gate",
    ]
    shapes = {named.module: (named.shape.in_features, named.shape.out_features) for named in slices}
    assert shapes[f"{path}mlp.gate"] == (64, 5)
    assert shapes[f"{path}mlp.experts.4.up_proj"] == (64, 24)
    assert shapes[f"{path}mlp.experts.4.down_proj"] == (24, 64)
    assert shapes[f"{path}mlp.shared_expert.gate_proj"] == (64, 56)
    assert shapes[f"{path}mlp.shared_expert_gate"] == (64, 1)
    assert shapes["model.layers.1.mlp.up_proj"] == (64, 128)


def test_the_decoder_finds_each_slice_by_its_index() -> None:
    modules = [named.module for named in named_slices(CONFIG)]
    for layer, first in enumerate(FIRST_OF_LAYER):
        path, slices = f"model.layers.{layer}.", layer_slices(CONFIG, layer)
        assert slices.qkv[0].slice == first
        assert modules[slices.o[0].slice] == f"{path}self_attn.o_proj"
        if layer == 1:
            assert isinstance(slices.mlp, MlpSlices)
            assert modules[slices.mlp.down[0].slice] == f"{path}mlp.down_proj"
            continue
        mlp = slices.mlp
        assert isinstance(mlp, ExpertSlices)
        assert modules[mlp.router[0].slice] == f"{path}mlp.gate"
        assert modules[mlp.first_expert + 3 * 4 + 2] == f"{path}mlp.experts.4.down_proj"
        assert mlp.shared is not None
        assert modules[mlp.shared.gate_up[1].slice] == f"{path}mlp.shared_expert.up_proj"
        assert modules[mlp.shared_gate[0].slice] == f"{path}mlp.shared_expert_gate"
    assert modules[embedding_index(CONFIG)] == "model.embed_tokens"
    assert modules[head_slices(CONFIG)[0].slice] == modules[-1] == "lm_head"


@pytest.mark.parametrize("part", ["magnitude", "lora_bias", "bias", "shift"])
def test_an_expert_takes_plain_lora_alone(part: str) -> None:
    layout = build_layout(
        CONFIG, base_digest="b", base_name="tiny", dtype=torch.float32, max_rank=8, max_pack_bytes=1 << 16
    )
    pool = AdapterPool(CONFIG, units=200, slots=1, dtype=torch.float32)
    modules = [spec.module for spec in layout.slices]
    place = layout_pb2.SlicePlacement(
        slice=modules.index("model.layers.0.mlp.experts.3.up_proj"),
        b_offset=64 * 8 * 4,
        padded_rank=8,
        rank=8,
        scaling=1.0,
    )
    manifest = layout_pb2.PackManifest(digest="d", total_bytes=1 << 14, slices=[place])
    assert pool.prepare(0, manifest).rank == 8
    setattr(manifest.slices[0], f"{part}_offset", 1 << 13)
    with pytest.raises(ValueError, match=r"experts\.3\.up_proj takes plain LoRA alone"):
        pool.prepare(0, manifest)
