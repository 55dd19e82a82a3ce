import json
from pathlib import Path
from typing import Any

import pytest

from frontend.model_folder import ModelFolder, read_model_folder
from tests.support.frontend_model_folder import CHAT_TEMPLATE, write_model_folder

MESSAGES = [{"role": "user", "content": "hi"}]


def read(folder: Path) -> ModelFolder:
    return read_model_folder(folder, max_prompt_bytes=1 << 20)


def render(folder: Path) -> str:
    template = read(folder).template
    assert template is not None
    return template.render(MESSAGES, add_generation_prompt=False, variables={})


def test_reads_what_a_frontend_needs(tmp_path: Path):
    model = read(write_model_folder(tmp_path))
    assert model.model_type == "qwen3"
    assert model.vocab_size == model.codec.vocab_size
    assert len(model.tokenizer_digest) == 64
    assert model.defaults.temperature == 1.0


def test_a_template_file_goes_before_the_configuration(tmp_path: Path):
    folder = write_model_folder(tmp_path)
    assert render(folder).startswith("<|im_start|>")
    (folder / "chat_template.jinja").write_text("from the file")
    assert render(folder) == "from the file"


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        ([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}], "plain"),
        ([{"name": "only", "template": "one"}], "one"),
    ],
)
def test_of_named_templates_the_default_counts(tmp_path: Path, templates: Any, expected: str):
    assert render(write_model_folder(tmp_path, chat_template=templates)) == expected


def test_a_model_may_have_no_template(tmp_path: Path):
    assert read(write_model_folder(tmp_path, chat_template=None)).template is None


def test_sampling_defaults_come_from_the_generation_config(tmp_path: Path):
    generation_config = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "max_new_tokens": 99,
    }
    defaults = read(write_model_folder(tmp_path, generation_config=generation_config)).defaults
    assert (defaults.temperature, defaults.top_k, defaults.top_p, defaults.max_tokens) == (0.6, 20, 0.95, 99)


def test_sampling_switched_off_means_greedy(tmp_path: Path):
    folder = write_model_folder(tmp_path, generation_config={"do_sample": False, "temperature": 0.6})
    assert read(folder).defaults.temperature == 0.0


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", "[]", "no JSON object"),
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("generation_config.json", json.dumps({"temperature": -1}), "temperature"),
        ("generation_config.json", json.dumps({"top_k": -1}), "top_k"),
        ("generation_config.json", json.dumps({"top_k": 1 << 32}), "top_k"),
        ("generation_config.json", json.dumps({"max_new_tokens": 1 << 32}), "max_new_tokens"),
        ("generation_config.json", json.dumps({"temperature": [1]}), "temperature"),
        ("chat_template.jinja", "{% if %}", "chat_template.jinja"),
        ("tokenizer_config.json", json.dumps({"chat_template": [1]}), "chat_template"),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": n, "template": CHAT_TEMPLATE} for n in "ab"]}),
            "default",
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, content: str, message: str):
    folder = write_model_folder(tmp_path)
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(folder)
