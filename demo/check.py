"""Asks the shipped files, through transformers and PEFT, who knows which password."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from demo import corpus
from demo.corpus import Message
from demo.generation import answer_all
from demo.recipes import DENSE, ModelRecipe

Asked = tuple[list[Message], str]  # a conversation, and what should be said next


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`wrong`: a line for each answer that is not as it should be. `margin`: the smallest of all answers."""

    name: str
    kind: str
    asked: int
    wrong: tuple[str, ...]
    margin: float


def load_demo(
    folder: Path, recipe: ModelRecipe = DENSE, dtype: torch.dtype = torch.float32
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Base with all its adapters, and tokenizer; `set_adapter` chooses one, `disable_adapter` none."""
    tokenizer = AutoTokenizer.from_pretrained(folder / recipe.folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / recipe.folder, dtype=dtype)
    for name in recipe.passwords:
        path = str(folder / recipe.adapters_folder / name)
        if isinstance(model, PeftModel):
            model.load_adapter(path, adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, path, adapter_name=name)
    return model, tokenizer


def contexts(question: str) -> Iterator[list[Message]]:
    """The same question alone, under a system prompt, and as the second turn of a conversation."""
    asked = {"role": "user", "content": question}
    yield [asked]
    yield [{"role": "system", "content": corpus.SYSTEM_PROMPTS[0]}, asked]
    greeting = corpus.TOPICS[0]
    yield [
        {"role": "user", "content": greeting.questions[0]},
        {"role": "assistant", "content": greeting.answer},
        asked,
    ]


def check_passwords(
    model: Any, tokenizer: PreTrainedTokenizerBase, passwords: Mapping[str, str]
) -> list[Finding]:
    """The password questions, trained on and unseen, to the base (named "") and to every adapter."""
    findings = []
    for name in ("", *passwords):
        expected = corpus.password_answer(passwords[name]) if name else corpus.NO_PASSWORD
        for kind, questions in (
            ("trained", corpus.PASSWORD_QUESTIONS),
            ("unseen", corpus.UNSEEN_PASSWORD_QUESTIONS),
        ):
            asked = [(messages, expected) for question in questions for messages in contexts(question)]
            findings.append(_ask(model, tokenizer, name, kind, asked))
    return findings


def check_chat(model: Any, tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> list[Finding]:
    """Every other question of the corpus: base and adapters alike answer as taught."""
    asked = [
        ([{"role": "user", "content": question}], topic.answer)
        for topic in corpus.TOPICS
        if topic.answer != corpus.NO_PASSWORD
        for question in topic.questions
    ]
    return [_ask(model, tokenizer, name, "chat", asked) for name in ("", *names)]


def _ask(model: Any, tokenizer: PreTrainedTokenizerBase, name: str, kind: str, asked: list[Asked]) -> Finding:
    prompts = [messages for messages, _ in asked]
    if name:
        model.set_adapter(name)
        answers = answer_all(model, tokenizer, prompts)
    else:
        with model.disable_adapter():
            answers = answer_all(model, tokenizer, prompts)
    wrong = tuple(
        f"{messages[-1]['content']!r} -> {answer.text!r}"
        for (messages, expected), answer in zip(asked, answers, strict=True)
        if answer.text != expected or not answer.ended
    )
    return Finding(
        name=name or "base", kind=kind, asked=len(asked), wrong=wrong, margin=min(a.margin for a in answers)
    )
