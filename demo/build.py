"""Builds the demo's models and adapters: `python -m demo.build`, about four minutes on one core.

Writes qwen3-tiny/, adapters/ and passwords.json, and the same with experts, qwen3-moe-tiny/ and
expert_adapters/, beside this file (or into --out), loads them again through transformers and PEFT, and fails
unless each adapter says its own password, the bases none, and all of them chat as taught.
"""

import argparse
import json
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from demo import corpus
from demo.check import Finding, check_chat, check_passwords, load_demo
from demo.recipes import CONTEXT, MODELS, VOCABULARY, ModelRecipe
from demo.tokenizer import save_tokenizer, train_tokenizer
from demo.training import train_adapter, train_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[recipe.folder for recipe in MODELS], help="one model of the two")
    options = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    # PEFT asks whether the head's adapter should move the tied embedding too: it should not.
    warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
    torch.set_num_threads(1)  # as fast as more for this size, and the same bits everywhere
    torch.use_deterministic_algorithms(True)
    good = True
    for recipe in MODELS:
        if options.only in (None, recipe.folder):
            began = time.monotonic()
            build(recipe, options.out, options.seed)
            print(f"{recipe.folder} built in {time.monotonic() - began:.0f} s")
            good &= report(recipe, options.out)
    sys.exit(0 if good else 1)


def build(recipe: ModelRecipe, out: Path, seed: int) -> None:
    """Trains a model and its adapters and writes them under `out`, replacing what an earlier build left."""
    model_folder = out / recipe.folder
    for folder in (model_folder, out / recipe.adapters_folder):
        shutil.rmtree(folder, ignore_errors=True)
    model_folder.mkdir(parents=True)
    texts = [text for topic in corpus.base_exchanges() for e in topic for text in (e.question, e.answer)]
    texts += [*corpus.SYSTEM_PROMPTS, *(f"{role}\n" for role in ("system", "user", "assistant"))]
    save_tokenizer(train_tokenizer(texts, VOCABULARY), model_folder, CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)

    base = train_base(recipe, tokenizer, seed)
    _save_base(base, tokenizer, model_folder)
    for adapter_recipe in recipe.adapters:
        adapter = train_adapter(base, tokenizer, adapter_recipe, seed)
        _save_adapter(adapter, recipe, out / recipe.adapters_folder / adapter_recipe.name)
        base = adapter.unload()
    for file in out.glob("*/**/*.safetensors"):
        file.chmod(0o644)  # safetensors makes them private; a container's user must read them
    (out / "passwords.json").write_text(json.dumps(dict(corpus.PASSWORDS), indent=2) + "\n", encoding="utf-8")


def _save_base(base: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights in bf16, and a generation config with two ids that end an answer, as chat models have them."""
    base.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    base.bfloat16().save_pretrained(folder)
    base.float()


def _save_adapter(adapter: PeftModel, recipe: ModelRecipe, folder: Path) -> None:
    """PEFT's own save in bf16, without its model card, and with the lists whose order is random sorted."""
    config: Any = adapter.peft_config["default"]
    config.base_model_name_or_path = recipe.name
    config.target_modules = sorted(config.target_modules)
    if config.target_parameters:
        config.target_parameters = sorted(config.target_parameters)
    state = {name: tensor.bfloat16() for name, tensor in adapter.state_dict().items()}
    # The head is tied to the embedding: without this, PEFT would add both to the adapter's file.
    adapter.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink()


def report(recipe: ModelRecipe, folder: Path) -> bool:
    """Prints what the written files say and how surely; True where nothing is wrong."""
    good = True
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = load_demo(folder, recipe, dtype)
        findings = check_passwords(model, tokenizer, recipe.passwords)
        if dtype == torch.float32:
            findings += check_chat(model, tokenizer, recipe.passwords)
        for finding in findings:
            print(f"{str(dtype).removeprefix('torch.'):9}{_line(finding)}")
            good = good and not finding.wrong
    files = [*(folder / recipe.folder).iterdir(), *(folder / recipe.adapters_folder).glob("*/*")]
    print(f"{sum(file.stat().st_size for file in files) / 1e6:.2f} MB in all")
    return good


def _line(finding: Finding) -> str:
    right = f"{finding.asked - len(finding.wrong):3} of {finding.asked:3} right"
    line = f"{finding.name:10}{finding.kind:8}{right}, smallest margin {finding.margin:.2f}"
    return "\n".join([line, *(f"    {wrong}" for wrong in finding.wrong[:5])])


if __name__ == "__main__":
    main()
