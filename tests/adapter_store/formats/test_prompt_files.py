import json

import pytest

from adapter_store.formats.prompt_files import read_prompt_files
from rpc.errors import LorikeetError
from tests.support.store_adapters import VOCABULARY, toy_pack_layout

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def read(folder, **files):
    for name, content in files.items():
        path = folder / {"jinja": "chat_template.jinja"}.get(name, f"{name}.json")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_prompt_files(folder, toy_pack_layout())


def test_most_adapters_bring_none(tmp_path):
    found = read(tmp_path)
    assert (found.chat_template, found.notes) == (None, ())


def test_a_template_of_its_own_goes_before_the_tokenizers(tmp_path):
    found = read(tmp_path, jinja=TEMPLATE.encode(), tokenizer_config={"chat_template": "other"})
    assert found.chat_template == TEMPLATE
    assert found.notes == (
        "the chat template in its chat_template.jinja is used for the adapter's chat prompts",
    )


@pytest.mark.parametrize(
    "value", ["text", [{"name": "rag", "template": "x"}, {"name": "default", "template": "text"}]]
)
def test_a_template_may_stand_in_the_tokenizers_configuration(tmp_path, value):
    assert read(tmp_path, tokenizer_config={"chat_template": value}).chat_template == "text"


def test_tokens_of_the_bases_vocabulary_are_fine(tmp_path):
    found = read(
        tmp_path,
        added_tokens={"<a>": VOCABULARY - 1},
        tokenizer_config={"added_tokens_decoder": {"0": {"content": "<pad>"}}},
    )
    assert found.chat_template is None
    assert "names 2 special tokens" in found.notes[0]


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"<new>": VOCABULARY}},
        {"tokenizer_config": {"added_tokens_decoder": {str(VOCABULARY): {"content": "<new>"}}}},
    ],
)
def test_tokens_that_the_base_cannot_have_are_refused(tmp_path, files):
    with pytest.raises(LorikeetError, match="'<new>' with id 40, and 'toy-base' has 40 tokens") as caught:
        read(tmp_path, **files)
    assert caught.value.reason == "ADDED_TOKENS"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"jinja": b"\xff"}, "not UTF-8"),
        ({"jinja": b"x" * (5 << 20)}, "larger than"),
        ({"jinja": b"x" * (2 << 20)}, "chat template is larger"),
        ({"tokenizer_config": b"{"}, "not valid JSON"),
        ({"tokenizer_config": []}, "not a JSON object"),
        ({"tokenizer_config": {"chat_template": 7}}, "neither text nor a list"),
        ({"tokenizer_config": {"chat_template": [{"name": "rag", "template": "x"}]}}, "none is named"),
        ({"tokenizer_config": {"chat_template": [{"name": []}]}}, "none is named default"),
        ({"tokenizer_config": {"chat_template": "\ud800"}}, "not Unicode"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "is no object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "'x' is no token's id"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9" * 99: {}}}}, "is no token's id"),
        ({"added_tokens": {"a": -1}}, "impossible id"),
        ({"added_tokens": {"a": "0"}}, "impossible id"),
    ],
)  # fmt: skip
def test_malformed_files_are_refused(tmp_path, files, message):
    with pytest.raises(LorikeetError) as caught:
        read(tmp_path, **files)
    assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "BAD_FILE")
    assert message in caught.value.message
