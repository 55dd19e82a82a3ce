"""Made-up weights: finite logits of some spread, the same for the same seed."""

import torch

from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters

CPU = torch.device("cpu")
CONFIG = ModelConfig.parse(
    {
        "model_type": "qwen3",
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    },
    {},
)


def test_every_element_is_set_and_a_seed_decides_it() -> None:
    def made(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
        parameters = dummy_parameters(config, dtype=torch.float32, device=CPU, seed=seed)
        return parameters.destinations(config)

    first, again, other = made(CONFIG, 1), made(CONFIG, 1), made(CONFIG, 2)
    for name, view in first.items():
        assert view.isfinite().all()
        assert torch.equal(view, again[name])
        if view.dim() == 2:
            assert not torch.equal(view, other[name])
            assert 0.5 < view.std() * view.shape[1] ** 0.5 < 2
