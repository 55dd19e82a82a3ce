"""Options of experts against transformers' own reading, and refusals that name the option."""

from typing import Any

import pytest
from transformers import AutoConfig

from executor.model.config import ModelConfig
from executor.model.expert_options import ExpertsConfig
from kernels.moe import RouterForm
from tests.support.oracle_checkpoints import MOE_FAMILIES

SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def parse(family: str, **options: Any) -> ModelConfig:
    return ModelConfig.parse(SHAPE | {"model_type": family} | options, {})


def experts(family: str, **options: Any) -> ExpertsConfig:
    parsed = parse(family, **options).experts
    assert parsed is not None
    return parsed


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_absent_options_take_the_familys_defaults(family: str) -> None:
    hf, ours = AutoConfig.for_model(family), experts(family)
    assert ours.count == hf.num_experts
    assert ours.chosen == hf.num_experts_per_tok
    assert ours.width == getattr(hf, "moe_intermediate_size", SHAPE["intermediate_size"])
    assert ours.shared_width == getattr(hf, "shared_expert_intermediate_size", None)
    normalised = getattr(hf, "norm_topk_prob", True)  # Mixtral's always are
    assert ours.form is (RouterForm.NORMALISED if normalised else RouterForm.SHARES)
    assert ours.layers == (True,) * 4


def test_options_are_honoured() -> None:
    ours = experts(
        "qwen2_moe",
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=40,
        shared_expert_intermediate_size=88,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        mlp_only_layers=[1],
    )
    assert (ours.count, ours.chosen, ours.width, ours.shared_width) == (6, 3, 40, 88)
    assert ours.form is RouterForm.NORMALISED
    assert ours.layers == (False, False, False, True)
    assert experts("qwen3_moe", num_local_experts=10).count == 10
    assert experts("olmoe", num_experts=9).count == 9
    assert experts("qwen3_moe", mlp_only_layers=None).layers == (True,) * 4


def test_a_layer_is_dense_or_has_experts() -> None:
    model = parse("qwen3_moe", mlp_only_layers=[2])
    assert [model.experts_of(layer) is None for layer in range(4)] == [False, False, True, False]
    assert model.intermediate_size == 128
    assert parse("qwen3").experts_of(0) is None


def test_options_of_training_are_known() -> None:
    training = {"router_aux_loss_coef": 0.001, "output_router_logits": True, "router_jitter_noise": 0.1}
    assert parse("mixtral", **training).unrecognised == ()
    assert parse("mixtral", n_group=4, moe_intermediate_size=7).unrecognised == (
        "moe_intermediate_size",
        "n_group",
    )


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("qwen3_moe", {"num_experts": 0}, "num_experts must be a whole number of at least 1"),
        ("qwen3_moe", {"num_experts": 4, "num_local_experts": 8}, "contradict each other"),
        ("qwen3_moe", {"num_experts": 4}, "num_experts_per_tok 8 is more than the 4 experts"),
        ("qwen3_moe", {"moe_intermediate_size": "768"}, "moe_intermediate_size must be"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be"),
        ("qwen3_moe", {"mlp_only_layers": [1, "2"]}, "mlp_only_layers must be a list"),
        ("qwen3_moe", {"mlp_only_layers": 3}, "mlp_only_layers must be a list"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size must be"),
        ("olmoe", {"norm_topk_prob": 1}, "norm_topk_prob must be true or false"),
        ("mixtral", {"norm_topk_prob": False}, "norm_topk_prob false is not supported for mixtral"),
        ("llama", {"num_local_experts": 8}, "num_local_experts = 8 is not supported for llama"),
    ],
)
def test_refusals_name_the_option(family: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(family, **options)
