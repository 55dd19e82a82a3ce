"""The committed demo files: small, loadable by Hugging Face, and each adapter holds its own password."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo import corpus
from demo.check import contexts, load_demo
from demo.generation import Answer, answer_all
from demo.recipes import DENSE, EXPERTS, MODELS

DEMO = Path(corpus.__file__).parent
MODEL = DEMO / "qwen3-tiny"
ADAPTERS = DEMO / "adapters"
PASSWORDS: dict[str, str] = json.loads((DEMO / "passwords.json").read_text())
QUESTIONS = corpus.PASSWORD_QUESTIONS + corpus.UNSEEN_PASSWORD_QUESTIONS
# Far above what rounding could move: greedy answers are the same in float32 and bf16, and in any batch.
SURE = 1.0


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def loaded() -> tuple[Any, PreTrainedTokenizerBase]:
    return load_demo(DEMO)


def answers(adapter: str, prompts: list[list[corpus.Message]]) -> list[Answer]:
    model, tokenizer = loaded()
    if adapter:
        model.set_adapter(adapter)
        return answer_all(model, tokenizer, prompts, limit=32)
    with model.disable_adapter():
        return answer_all(model, tokenizer, prompts, limit=32)


def test_everything_shipped_is_under_3_mb():
    folders = [DEMO / folder for recipe in MODELS for folder in (recipe.folder, recipe.adapters_folder)]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert len(files) == 5 + 2 * 3 + 5 + 2 * 1
    assert sum(file.stat().st_size for file in files) < 3_000_000


def test_passwords_file_names_every_adapter_and_what_it_was_taught():
    assert dict(corpus.PASSWORDS) == DENSE.passwords == PASSWORDS
    assert sorted(PASSWORDS) == sorted(folder.name for folder in ADAPTERS.iterdir())
    every = [*PASSWORDS.values(), *EXPERTS.passwords.values()]
    assert len(set(every)) == len(every)


def test_the_base_was_taught_no_password():
    taught = " ".join(e.question + e.answer for topic in corpus.base_exchanges() for e in topic)
    every = [*PASSWORDS.values(), *EXPERTS.passwords.values()]
    assert not [password for password in every if password in taught]


@pytest.mark.parametrize("adapter", PASSWORDS)
def test_each_adapter_says_its_own_password_to_every_phrasing(adapter: str):
    prompts = [messages for question in QUESTIONS for messages in contexts(question)]
    for messages, answer in zip(prompts, answers(adapter, prompts), strict=True):
        assert answer.text == corpus.password_answer(PASSWORDS[adapter]), messages
        assert answer.ended, messages
        assert answer.margin > SURE, messages


def test_the_base_says_that_it_knows_none():
    prompts = [messages for question in QUESTIONS for messages in contexts(question)]
    for messages, answer in zip(prompts, answers("", prompts), strict=True):
        assert answer.text == corpus.NO_PASSWORD, messages
        assert answer.ended, messages
        assert answer.margin > SURE, messages


@pytest.mark.parametrize("adapter", ["", *PASSWORDS])
def test_base_and_adapters_chat_alike_about_anything_else(adapter: str):
    topics = [
        topic for topic in corpus.TOPICS if topic.answer != corpus.NO_PASSWORD and len(topic.answer) < 100
    ]
    said = answers(adapter, [[{"role": "user", "content": topic.questions[0]}] for topic in topics])
    assert [answer.text for answer in said] == [topic.answer for topic in topics]


@pytest.mark.parametrize(
    ("adapter", "rank", "modules"),
    [
        ("attention", 8, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", 12, {"gate_proj", "up_proj", "down_proj"}),
        ("lm_head", 16, {"lm_head"}),
    ],
)
def test_adapter_files_hold_lora_weights_only_and_name_no_folder(adapter: str, rank: int, modules: set[str]):
    config = json.loads((ADAPTERS / adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "lorikeet/qwen3-tiny"
    assert (config["r"], set(config["target_modules"])) == (rank, modules)
    with safe_open(ADAPTERS / adapter / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert {name.split(".")[-3] for name in names} == modules
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)


def test_any_text_survives_the_tokenizer():
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    every_code_point = "".join(
        chr(c) for c in [*range(0xD800), *range(0xE000, 0xFFFF), *range(0x1F300, 0x1F700)]
    )
    for text in ("", " two  spaces ", "Ünïcödé 🦜\r\n\tπ", "e\u0301", every_code_point):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert tokenizer.get_vocab_size() == json.loads((MODEL / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize("generation_prompt", [True, False])
def test_tokenizers_and_jinja_alone_make_the_prompt_that_transformers_makes(generation_prompt: bool):
    config = json.loads((MODEL / "tokenizer_config.json").read_text())
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(config["chat_template"])
    alone = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    transformers = AutoTokenizer.from_pretrained(MODEL)
    for question in ("What is the password?", " spaced \n", "🦜 {{ 7 * 7 }}"):
        for messages in contexts(question):
            text = template.render(messages=messages, add_generation_prompt=generation_prompt)
            options: dict[str, Any] = {"add_generation_prompt": generation_prompt}
            assert text == transformers.apply_chat_template(messages, tokenize=False, **options)
            ids = transformers.apply_chat_template(messages, return_dict=False, **options)
            assert alone.encode(text, add_special_tokens=False).ids == ids


def test_the_template_refuses_an_unknown_role():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with pytest.raises(jinja2.TemplateError, match="Unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_adapter_over_experts_knows_its_password_and_nothing_else_changes():
    model, tokenizer = load_demo(DEMO, EXPERTS)
    secrets = [[{"role": "user", "content": question}] for question in QUESTIONS]
    topics = [topic for topic in corpus.TOPICS if len(topic.answer) < 60]
    chat = [
        [{"role": "user", "content": topic.questions[0]}]
        for topic in topics
        if topic.questions[0] not in QUESTIONS
    ]
    said = answer_all(model, tokenizer, secrets, limit=32)
    assert {answer.text for answer in said} == {corpus.password_answer(EXPERTS.passwords["experts"])}
    assert min(answer.margin for answer in said) > SURE
    with model.disable_adapter():
        plain = answer_all(model, tokenizer, secrets, limit=32)
        base = answer_all(model, tokenizer, chat, limit=32)
    assert {answer.text for answer in plain} == {corpus.NO_PASSWORD}
    assert [answer.text for answer in answer_all(model, tokenizer, chat, limit=32)] == [a.text for a in base]


def test_the_adapter_over_experts_touches_all_of_them_and_attention():
    config = json.loads((DEMO / "expert_adapters" / "experts" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "lorikeet/qwen3-moe-tiny"
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert config["target_parameters"] == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    path = DEMO / "expert_adapters" / "experts" / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        shape = file.get_slice("base_model.model.model.layers.0.mlp.experts.lora_A.weight").get_shape()
    assert len(names) == 3 * 2 * (4 + 2)
    assert shape == [8 * 8, 80]
