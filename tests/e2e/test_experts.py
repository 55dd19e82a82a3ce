"""A model with experts as users see it: its adapter in both forms that trainers write, beside the base."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo import corpus
from demo.check import load_demo
from demo.generation import answer_all
from demo.recipes import EXPERTS
from tests.support.answers import question
from tests.support.service_stack import DEMO, stack_at

ADAPTER = DEMO / EXPERTS.adapters_folder / "experts"
PASSWORD = corpus.EXPERT_PASSWORDS["experts"]
ASKED = ("What is the password?", "What is a lorikeet?", "Password, please.")


def one_by_one(folder: Path, *, experts: int = 8) -> Path:
    """The demo's adapter as transformers 4 would save it: a module for each projection of each expert."""
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    targets = [*config["target_modules"], "gate_proj", "up_proj", "down_proj"]
    cut: dict[str, Tensor] = {}
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        stacked_a, stacked_b = tensors.pop(name), tensors.pop(name.replace("lora_A", "lora_B"))
        path, is_experts, nested = name.removesuffix(".lora_A.weight").partition(".experts")
        if not is_experts:
            cut |= {name: stacked_a, name.replace("lora_A", "lora_B"): stacked_b}
            continue
        a_ERK = stacked_a.unflatten(0, (experts, -1))
        b_ENR = stacked_b.unflatten(1, (-1, experts)).permute(2, 0, 1)
        modules = ("gate_proj", "up_proj") if nested else ("down_proj",)
        for e, (a_RK, b_NR) in enumerate(zip(a_ERK, b_ENR, strict=True)):
            for module, part_NR in zip(modules, b_NR.chunk(len(modules)), strict=True):
                cut[f"{path}.experts.{e}.{module}.lora_A.weight"] = a_RK.clone()
                cut[f"{path}.experts.{e}.{module}.lora_B.weight"] = part_NR.contiguous()
    folder.mkdir()
    save_file(cut, folder / "adapter_model.safetensors")
    config |= {"target_modules": targets, "target_parameters": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.asyncio
async def test_an_adapter_on_all_experts_in_both_forms_and_the_base_in_one_mixed_batch(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_demo(DEMO, EXPERTS)
    prompts = [[{"role": "user", "content": ask}] for ask in ASKED]
    expected = {"experts": [answer.text for answer in answer_all(model, tokenizer, prompts, limit=64)]}
    with model.disable_adapter():
        expected[""] = [answer.text for answer in answer_all(model, tokenizer, prompts, limit=64)]
    expected["one-by-one"] = expected["experts"]
    assert PASSWORD in expected["experts"][0]
    assert PASSWORD not in expected[""][0]

    (folder := tmp_path / "stack").mkdir()
    roots = (ADAPTER.parent, tmp_path)
    async with stack_at(folder, model_dir=DEMO / EXPERTS.folder, roots=roots) as stack:
        await stack.load("experts", ADAPTER)
        await stack.load("one-by-one", one_by_one(tmp_path / "one_by_one"))
        before = await stack.until_empty()
        asked = [(name, i) for _ in range(2) for name in expected for i in range(len(ASKED))]
        answers = await stack.answer_together([question(ASKED[i], name) for name, i in asked])
        after = await stack.until_empty()
    for (name, i), answer in zip(asked, answers, strict=True):
        assert answer.text == expected[name][i], (name or "the base", ASKED[i])
    assert len({answer.digest for answer in answers}) == 3
    assert after.steps - before.steps < sum(len(answer.token_ids) for answer in answers) / 2
