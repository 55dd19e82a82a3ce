"""Weights made up on the device, for benchmarks of shapes whose checkpoints are not at hand."""

import torch

from executor.model.config import ModelConfig
from executor.model.parameters import Parameters


def dummy_parameters(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Parameters:
    """Random matrices that keep activations of the order of 1, norms of 1 and biases of 0."""
    parameters = Parameters.allocate(config, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, view in parameters.destinations(config, stacked=range(config.layers)).items():
        if name.endswith("norm.weight"):
            view.fill_(1)
        elif name.endswith("bias"):
            view.zero_()
        else:
            view.normal_(std=view.shape[-1] ** -0.5, generator=generator)
    return parameters
