import json
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from frontend.model_folder import read_model_folder
from frontend.text.chat_template import ChatTemplate, parse_variables
from rpc.errors import LorikeetError
from tests.support.frontend_model_folder import CHAT_TEMPLATE, EOS, write_model_folder

USER = {"role": "user", "content": "Grüße <b> & 'quotes'"}
CHAT = [{"role": "system", "content": "be brief"}, USER, {"role": "assistant", "content": " hi\n"}, USER]

# Each exercises things that templates in the wild use.
TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "loops": (
        "{% for m in messages %}\n  {% if loop.first and m.role == 'system' %}\n"
        "    {% continue %}\n  {% endif %}\n"
        "{{ loop.index0 }}:{{ m['content'] | trim }}{% if loop.last %}{% break %}{% endif %}\n{% endfor %}"
    ),
    "json": (
        "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}"
        "{{ {'b': 'ü', 'a': none} | tojson(sort_keys=true) }}"
    ),
    "namespace": (
        "{% set ns = namespace(last='') %}{% for m in messages %}{% set ns.last = m.role %}{% endfor %}"
        "{{ ns.last }}{{ bos_token | default('no bos') }}{{ eos_token }}{{ tools is none }}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "variables": (
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}"
    ),
    "macro": (
        "{%- macro show(m) -%}[{{ m.role }}]{{ m.content.split('\\n')[0].lstrip() }}{%- endmacro -%}"
        "{% for m in messages[::-1] %}{{ show(m) }}{% endfor %}{{ 'x' if add_generation_prompt else 'y' }}"
    ),
}


def template(source: str, max_bytes: int = 10_000) -> ChatTemplate:
    return ChatTemplate(
        source, special_tokens={"eos_token": EOS}, max_bytes=max_bytes, now=lambda: datetime(2026, 2, 3)
    )


def refusal(
    source: str, messages: list[dict[str, str]] | None = None, max_bytes: int = 10_000
) -> LorikeetError:
    with pytest.raises(LorikeetError) as caught:
        template(source, max_bytes).render(messages or CHAT, add_generation_prompt=True, variables={})
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_equals_transformers(tmp_path: Path, name: str, add_generation_prompt: bool):
    from transformers import AutoTokenizer

    folder = write_model_folder(tmp_path, chat_template=TEMPLATES[name])
    variables = {"enable_thinking": False}
    ours = read_model_folder(folder, max_prompt_bytes=10_000).template
    assert ours is not None
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
    )
    assert ours.render(CHAT, add_generation_prompt=add_generation_prompt, variables=variables) == theirs


def test_a_date_can_be_written():
    assert (
        template("{{ strftime_now('%d %b %Y') }}").render(CHAT, add_generation_prompt=True, variables={})
        == "03 Feb 2026"
    )


def test_what_the_template_raises_reaches_the_client():
    assert "unknown role tool" in refusal(CHAT_TEMPLATE, [{"role": "tool", "content": "x"}]).message


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[9].content.x }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{{ undefined_thing() }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_an_error_of_the_request(source: str):
    refusal(source)


def test_output_is_bounded_while_it_is_made():
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}"
    assert refusal(endless, max_bytes=1000).reason == "PROMPT_TOO_LARGE"


def test_a_broken_template_is_found_at_the_start():
    with pytest.raises(ValueError, match="line 2"):
        template("\n{% for %}")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '"x"',
        "null",
        json.dumps({"messages": []}),
        "[" * 100_000,
        '{"a": 1' + "0" * 5000 + "}",
        f"{{}}{' ' * 1_050_000}",
    ],
)
def test_malformed_variables_are_refused(text: str):
    with pytest.raises(LorikeetError) as caught:
        parse_variables(text)
    assert "template_variables_json" in caught.value.message


def test_variables_are_a_json_object():
    expected: dict[str, Any] = {"a": [1, None]}
    assert parse_variables(json.dumps(expected)) == expected
    assert parse_variables("") == {}
