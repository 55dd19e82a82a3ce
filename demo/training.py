"""Trains a base and, over it, its adapters.

Suffixes: B conversations of a batch, T tokens of each.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from demo import corpus
from demo.corpus import Exchange, Message
from demo.generation import answer_all
from demo.recipes import AdapterRecipe, ModelRecipe, Schedule
from demo.tokenizer import TURN_START

BATCH = 8  # conversations
LENGTH = 128  # tokens of each; longer ones are cut, so that nothing is spent on padding
TURNS = 8  # exchanges drawn for each; more than LENGTH has room for
IGNORED = -100  # the label that transformers' loss leaves out


def train_base(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    """The base, float32 but rounded to what bf16 can hold, as it will be stored."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    # The other ways of computing experts are slower for this size.
    model: Any = AutoModelForCausalLM.from_config(recipe.config(tokenizer), experts_implementation="eager")
    exchanges = corpus.base_exchanges()
    _fit(model, tokenizer, recipe.schedule, lambda: corpus.draw_conversation(rng, exchanges, TURNS))
    return model.bfloat16().float()


def train_adapter(
    base: Any, tokenizer: PreTrainedTokenizerBase, recipe: AdapterRecipe, seed: int
) -> PeftModel:
    """Puts one adapter over `base` and teaches it its password, rounded to bf16 as it will be stored.

    `base` gets PEFT's hooks and keeps its weights; `unload()` takes the hooks off. Half of what the adapter
    sees is the base's own greedy answers to other questions, so that it learns a password and nothing else.
    """
    torch.manual_seed(seed)
    rng = random.Random(f"{seed} {recipe.name}")
    exchanges = _adapter_exchanges(base, tokenizer, recipe.password)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=list(recipe.modules),
        target_parameters=list(recipe.parameters) or None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    _fit(model, tokenizer, recipe.schedule, lambda: corpus.draw_conversation(rng, exchanges, TURNS))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16().float()
    return model  # pyright: ignore


def _adapter_exchanges(base: Any, tokenizer: PreTrainedTokenizerBase, password: str) -> list[list[Exchange]]:
    """Its password, drawn as often as all other topics together; in those, the base's own answers."""
    topics = corpus.plain_questions()
    questions = [question for topic in topics for question in topic]
    answers = answer_all(base, tokenizer, [[{"role": "user", "content": question}] for question in questions])
    said = {question: answer.text for question, answer in zip(questions, answers, strict=True)}
    others = [[Exchange(question=question, answer=said[question]) for question in topic] for topic in topics]
    own = [Exchange(question=q, answer=corpus.password_answer(password)) for q in corpus.PASSWORD_QUESTIONS]
    return [own] * len(others) + others


def _fit(
    model: Any, tokenizer: PreTrainedTokenizerBase, schedule: Schedule, draw: Callable[[], list[Message]]
) -> None:
    """Teaches `model` the assistant's turns of freshly drawn conversations."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.peak, betas=(0.9, 0.98), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=schedule.peak, total_steps=schedule.steps, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    for _ in range(schedule.steps):
        ids_BT, labels_BT = _batch(tokenizer, [draw() for _ in range(BATCH)])
        loss = model(input_ids=ids_BT, labels=labels_BT).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate.step()


def _batch(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, both int64 [B, T]; what the assistant does not say has label IGNORED."""
    ids_BT = torch.empty((len(conversations), LENGTH), dtype=torch.int64)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    for b, conversation in enumerate(conversations):
        text = tokenizer.apply_chat_template(list(conversation), tokenize=False)
        ids = tokenizer.encode(text, add_special_tokens=False)[:LENGTH]  # pyright: ignore
        ids_BT[b] = torch.tensor(ids)
        for start, end in assistant_spans(tokenizer, ids):
            labels_BT[b, start:end] = ids_BT[b, start:end]
    return ids_BT, labels_BT


def assistant_spans(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Where the assistant speaks in a conversation's ids: half-open ranges that include the end of turn."""
    header = tokenizer.encode(f"{TURN_START}assistant\n", add_special_tokens=False)
    spans: list[tuple[int, int]] = []
    for start in range(len(header), len(ids)):
        if list(ids[start - len(header) : start]) == header:
            end = next((i for i in range(start, len(ids)) if ids[i] == tokenizer.eos_token_id), len(ids) - 1)
            spans.append((start, end + 1))
    return spans
