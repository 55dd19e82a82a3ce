"""The parts of the demo's builder that can be wrong without a training run showing it."""

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from demo import corpus
from demo.tokenizer import train_tokenizer
from demo.training import LENGTH, TURNS, assistant_spans

MODEL = Path(corpus.__file__).parent / "qwen3-tiny"


def test_only_what_the_assistant_says_is_learned_with_its_end_of_turn():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello to you."},
        {"role": "user", "content": "Bye."},
        {"role": "assistant", "content": "Goodbye!"},
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    said = [tokenizer.decode(ids[start:end]) for start, end in assistant_spans(tokenizer, ids)]
    assert said == ["Hello to you.<|im_end|>", "Goodbye!<|im_end|>"]
    cut = ids[:-3]  # within the last answer
    start, end = assistant_spans(tokenizer, cut)[-1]
    assert (tokenizer.decode(cut[start:end]), end) == ("Goodbye", len(cut))


def test_drawn_conversations_fill_their_row_and_follow_the_seed():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    exchanges = corpus.base_exchanges()
    drawn = [corpus.draw_conversation(random.Random(seed), exchanges, TURNS) for seed in range(200)]
    again = [corpus.draw_conversation(random.Random(seed), exchanges, TURNS) for seed in range(200)]
    assert drawn == again
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in drawn]
    assert min(len(tokenizer.encode(text)) for text in texts) >= LENGTH


def test_a_corpus_too_small_for_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="lower the vocabulary or add text"):
        train_tokenizer(["aa bb"], 640)
