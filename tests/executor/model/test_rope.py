"""Frequencies and rotation of every supported rope type, against transformers."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from executor.model.rope import RopeConfig, rotary_tables
from kernels.fused.reference import rotate

HEAD_DIM = 64
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512},
    {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "attention_factor": 0.7,
    },
    {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 128,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 0.5, "original_max_position_embeddings": 512},
]


@pytest.mark.parametrize("options", ROPES, ids=lambda options: options["rope_type"])
def test_against_transformers(options: dict[str, Any]) -> None:
    config = LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=2048,
        rope_parameters=dict(options),
    )
    theirs = LlamaRotaryEmbedding(config)
    rope = RopeConfig.parse({"rope_parameters": options}, max_positions=2048)
    assert torch.equal(rope.frequencies(HEAD_DIM), theirs.inv_freq)
    assert rope.attention_factor == pytest.approx(theirs.attention_scaling)

    positions = torch.tensor([0, 1, 17, 500, 2047])
    q, k = torch.randn(1, 3, 5, HEAD_DIM), torch.randn(1, 2, 5, HEAD_DIM)
    expected_q, expected_k = apply_rotary_pos_emb(q, k, *theirs(q, positions[None]))
    cos_LD, sin_LD = rotary_tables(
        rope, head_dim=HEAD_DIM, length=2048, dtype=torch.float32, device=torch.device("cpu")
    )
    both_THD = torch.cat((q, k), dim=1)[0].transpose(0, 1)
    rotated = rotate(both_THD, cos_LD[positions], sin_LD[positions]).transpose(0, 1)
    torch.testing.assert_close(rotated, torch.cat((expected_q, expected_k), dim=1)[0], rtol=1e-5, atol=1e-5)


def test_the_types_differ() -> None:
    """Guards the comparison above: options that had no effect would compare equal too."""
    seen = [
        (tuple(rope.frequencies(HEAD_DIM).tolist()), rope.attention_factor)
        for rope in (RopeConfig.parse({"rope_parameters": o}, max_positions=2048) for o in ROPES)
    ]
    assert len(set(seen)) == len(ROPES)


def test_yarn_factor_may_follow_from_the_lengths() -> None:
    rope = RopeConfig.parse(
        {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 512}}, max_positions=2048
    )
    assert rope.factor == 4.0
