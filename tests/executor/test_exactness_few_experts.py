"""Adapters on some projections of some experts, and DoRA beside experts, mixed in one batch, against PEFT."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from executor.control.request import SamplingParams
from executor.model.config import ModelConfig
from executor.model.layout import named_slices
from tests.support.oracle_checkpoints import MOE_FAMILIES, make_checkpoint
from tests.support.oracle_experts import Form, Lora, Loras, write_parameters, write_per_expert
from tests.support.oracle_reference import Oracle
from tests.support.oracle_serving import Ask, Server

RANK = 4
FORM = Form(rank=RANK, touches="", write=write_parameters)
# What of experts has LoRA.
FEW: dict[str, Callable[[str], bool]] = {
    "single experts": lambda module: ".experts.1." in module or module.endswith("experts.2.up_proj"),
    "gates alone": lambda module: module.endswith("gate_proj"),
}
# How a config says so; and what beside experts is linear, with DoRA. With Qwen2-MoE gate_proj and so on are
# the shared expert's, whose own gate is linear too.
TARGETS: dict[str, Any] = {
    "single experts": ["1.gate_proj", "1.up_proj", "1.down_proj", "2.up_proj"],
    "gates alone": r".*mlp\.experts\.\d+\.gate_proj",
    "dora": ["q_proj", "o_proj"],
}
TARGETS_OF: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"dora": ["q_proj", "gate_proj", "up_proj", "down_proj", "shared_expert_gate"]},
    "mixtral": {
        "single experts": ["1.w1", "1.w3", "1.w2", "2.w3"],
        "gates alone": r".*block_sparse_moe\.experts\.\d+\.w1",
    },
}


def dora_beside_experts(checkpoint: Path, folder: Path, targets: list[str]) -> Path:
    """As PEFT writes it."""
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    options = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=8, use_dora=True, target_modules=targets)
    model = get_peft_model(base, options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
            elif "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module", params=MOE_FAMILIES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Path], dict[str, Path]]:
    """A checkpoint, adapters for the store, and their twins for PEFT, in which the other experts add zero."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("few")
    checkpoint = make_checkpoint(folder / "model", request.param)
    targets = TARGETS | TARGETS_OF.get(request.param, {})
    config = ModelConfig.load(checkpoint)
    loras: Loras = {}
    for named in named_slices(config):
        if ".experts." in named.module:
            inputs, outputs = named.shape.in_features, named.shape.out_features
            a_RK = torch.randn(RANK, inputs) * inputs**-0.5
            loras[named.module] = Lora(a_RK, torch.randn(outputs, RANK) * RANK**-0.5)
    adapters = {"dora": dora_beside_experts(checkpoint, folder / "dora", targets["dora"])}
    twins = dict(adapters)
    for name, has in FEW.items():
        adapters[name], twins[name] = folder / name, folder / f"{name} for PEFT"
        write_per_expert(adapters[name], {m: lora for m, lora in loras.items() if has(m)}, FORM, config)
        settings = adapters[name] / "adapter_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"target_modules": targets[name]}))
        zeros = {m: lora if has(m) else Lora(lora.a, torch.zeros_like(lora.b)) for m, lora in loras.items()}
        write_parameters(twins[name], zeros, FORM, config)
    return checkpoint, adapters, twins


def test_few_experts_and_dora_beside_them(served: Any) -> None:
    checkpoint, adapters, twins = served
    oracle, rng = Oracle(checkpoint, twins), random.Random(3)
    asks = [
        Ask(
            prompt=tuple(rng.randrange(256) for _ in range(rng.randrange(2, 30))),
            adapter=owner,
            sampling=SamplingParams(max_tokens=10, logprobs=2, prompt_logprobs=0),
        )
        for _ in range(3)
        for owner in ("", *adapters)
    ]
    oracle.judge(Server(checkpoint, adapters).serve(asks), most_skipped=0.02)
    scores = [oracle.logprobs(owner, asks[0].prompt)[-1] for owner in ("", *adapters)]
    assert all((mine - other).abs().max() > 0.05 for i, mine in enumerate(scores) for other in scores[:i])
