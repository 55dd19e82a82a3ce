"""Greedy answers of a small model, many prompts at once, with the margin of the tightest choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from demo.corpus import Message


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`margin`: the smallest gap between the best and the second-best logit over the answer's tokens."""

    text: str
    ended: bool
    margin: float


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """A conversation as the token ids that an answer follows."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)  # pyright: ignore


@torch.inference_mode()
def answer_all(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], limit: int = 96
) -> list[Answer]:
    """Answers every conversation greedily, at most `limit` tokens each.

    Rows are padded on the right and recomputed whole at each step: causal attention never sees the padding,
    and for this size it is faster than keeping a KV cache.
    """
    model.eval()
    eos: int = tokenizer.eos_token_id  # pyright: ignore
    rows = [prompt_ids(tokenizer, messages) for messages in prompts]
    starts = [len(row) for row in rows]
    margins = [float("inf")] * len(rows)
    running = list(range(len(rows)))
    for _ in range(limit):
        if not running:
            break
        ids_BT = torch.full((len(running), max(len(rows[i]) for i in running)), eos)
        for b, i in enumerate(running):
            ids_BT[b, : len(rows[i])] = torch.tensor(rows[i])
        last_B = torch.tensor([len(rows[i]) - 1 for i in running])
        logits_BV = model(input_ids=ids_BT).logits[torch.arange(len(running)), last_B].float()
        top = logits_BV.topk(2)
        for b, i in enumerate(running):
            rows[i].append(int(top.indices[b, 0]))
            margins[i] = min(margins[i], float(top.values[b, 0] - top.values[b, 1]))
        running = [i for i in running if rows[i][-1] != eos]
    return [
        Answer(
            text=tokenizer.decode(row[start:], skip_special_tokens=True),  # pyright: ignore
            ended=row[-1] == eos,
            margin=margin,
        )
        for row, start, margin in zip(rows, starts, margins, strict=True)
    ]
