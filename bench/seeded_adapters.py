"""Random LoRA adapters for benchmarks: a seed makes an adapter, and transformers says what it answers.

Legend: R rank, K in features, N out features.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

Weights = dict[str, tuple[np.ndarray, np.ndarray]]

# The standard deviation of a delta's elements over that of the weight that it is added to.
STRENGTH = 0.6


def load_base(model_dir: Path) -> Any:
    """The base in float32, as transformers computes it."""
    from transformers import AutoModelForCausalLM  # where answers are known already, it need not be there

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def linears(model: Any) -> dict[str, nn.Linear]:
    """Every linear layer of the decoder's blocks, by its path."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A linear layer that adapters touch; `std` is that of its weight's elements."""

    inputs: int
    outputs: int
    std: float


def places(model: Any) -> dict[str, Place]:
    return {
        name: Place(inputs=linear.in_features, outputs=linear.out_features, std=float(linear.weight.std()))
        for name, linear in linears(model).items()
    }


def weights(at: Mapping[str, Place], seed: int, rank: int) -> Weights:
    """Path to lora_A [R, K] and lora_B [N, R], float32; alpha is the rank, so that nothing scales them."""
    generator = np.random.default_rng(seed)
    made: Weights = {}
    for name, place in at.items():
        a_RK = generator.standard_normal((rank, place.inputs), dtype=np.float32)
        b_NR = generator.standard_normal((place.outputs, rank), dtype=np.float32)
        made[name] = a_RK, b_NR * np.float32(STRENGTH * place.std / rank**0.5)
    return made


def write(folder: Path, made: Weights, rank: int) -> None:
    """A folder as PEFT writes it."""
    folder.mkdir(parents=True)
    tensors = {}
    for name, (a_RK, b_NR) in made.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a_RK
        tensors[f"base_model.model.{name}.lora_B.weight"] = b_NR
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in made}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


class Reference:
    """Greedy answers of the base with an adapter merged into it, for one prompt."""

    def __init__(self, model: Any, prompt_ids: Sequence[int], max_tokens: int, *, margin: float) -> None:
        self._model = model
        self._linears = linears(model)
        self._saved = {name: linear.weight.clone() for name, linear in self._linears.items()}
        self._prompt = torch.tensor([list(prompt_ids)])
        self._max_tokens = max_tokens
        self._margin = margin

    @torch.inference_mode()
    def answer(self, made: Weights) -> tuple[int, ...]:
        """Token ids up to the first whose margin over the next best is too small to be sure of."""
        for name, (a_RK, b_NR) in made.items():
            delta_NK = torch.from_numpy(b_NR) @ torch.from_numpy(a_RK)
            torch.add(self._saved[name], delta_NK, out=self._linears[name].weight)
        return tuple(self._greedy())

    def _greedy(self) -> list[int]:
        ids: list[int] = []
        past, following = None, self._prompt
        while len(ids) < self._max_tokens:
            output = self._model(following, past_key_values=past, use_cache=True)
            best, second = output.logits[0, -1].topk(2).values.tolist()
            if best - second < self._margin:
                break
            following = output.logits[:, -1:].argmax(-1)
            past = output.past_key_values
            ids.append(int(following))
        return ids


def write_all(folder: Path, at: Mapping[str, Place], *, count: int, rank: int) -> None:
    """Writes adapters `folder/0`, `folder/1`, ..."""
    for seed in range(count):
        write(folder / str(seed), weights(at, seed, rank), rank)


def answers(
    model_dir: Path,
    *,
    count: int,
    rank: int,
    prompt_ids: Sequence[int],
    max_tokens: int,
    margin: float = 1e-3,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Place], list[tuple[int, ...]]]:
    """The places that adapters touch, and what each adapter must answer."""
    model = load_base(model_dir)
    at = places(model)
    reference = Reference(model, prompt_ids, max_tokens, margin=margin)
    made: list[tuple[int, ...]] = []
    for seed in range(count):
        made.append(reference.answer(weights(at, seed, rank)))
        progress(seed + 1)
    return at, made
