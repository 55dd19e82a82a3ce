"""Tiny random checkpoints of every supported family, written by transformers itself."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
MOE_FAMILIES = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe")

_SHAPE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_FAMILY = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "mistral": {"head_dim": 24, "sliding_window": None, "tie_word_embeddings": False},
    # Of three layers, the second or the third is dense.
    "qwen3_moe": {
        "head_dim": 32,
        "tie_word_embeddings": True,
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "norm_topk_prob": True,
    },
    "qwen2_moe": {
        "num_hidden_layers": 3,
        "decoder_sparse_step": 2,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 56,
        "norm_topk_prob": False,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 72},
    "olmoe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "intermediate_size": 32,
        "clip_qkv": 1.5,
        "norm_topk_prob": False,
    },
}


def make_checkpoint(folder: Path, family: str, *, max_shard_size: str = "5GB", **options: Any) -> Path:
    """Write a checkpoint whose every parameter is random, biases and norms too, with logits far apart."""
    torch.set_num_threads(1)  # threads that spin make models of this size several times slower
    config = AutoConfig.for_model(family, **(_SHAPE | _FAMILY[family] | options))
    torch.manual_seed(sum(map(ord, family)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(
                    torch.randn_like(parameter)
                    * (0.1 if "embed" in name else 1.3 * parameter.shape[-1] ** -0.5)
                )
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
