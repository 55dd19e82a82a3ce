import json
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from frontend.requests.prompts import PromptReader
from frontend.text.token_floor import is_composed
from frontend.text.tokenizer import TextCodec
from frontend.text.workers import TextWorkers
from lorikeet.v1 import generation_pb2
from rpc.errors import LorikeetError
from tests.support.frontend_model_folder import EOS, byte_fallback_tokenizer, byte_level_tokenizer


def composing_tokenizer() -> Tokenizer:
    """As Qwen's: composed first, split by a pattern; with a token that is looked for in what is composed."""
    tokenizer = byte_level_tokenizer()
    tokenizer.normalizer = normalizers.NFC()  # pyright: ignore
    tokenizer.add_tokens([AddedToken("é" * 20, normalized=True)])
    return tokenizer


def falling_back_tokenizer() -> Tokenizer:
    """With a token that is looked for with a blank before it."""
    tokenizer = byte_fallback_tokenizer()
    tokenizer.add_tokens([AddedToken("lo" * 20, normalized=True)])
    return tokenizer


CODECS = {
    "byte level": TextCodec(byte_level_tokenizer()),
    "composing": TextCodec(composing_tokenizer()),
    "byte fallback": TextCodec(falling_back_tokenizer()),
}
# What is covered by few tokens, what takes many, what composes, and what is told apart before the model.
PARTS = [
    "hello",
    " hello",
    "e\u0301" * 20,
    " " + "lo" * 20,
    EOS,
    "<s>",
    " ",
    "\u2581",
    "the",
    " other",
    "日本",
    "😀",
]
PARTS += ["e\u0301", "\u212a", "\u1100\u1161\u11a8", "\u0958", "<0x41>", "\n", "!", "7"]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
@settings(max_examples=150, deadline=None)
@example(text="e\u0301" * 20)
@example(text=(" " + "lo" * 20) * 100)
@given(text=st.lists(st.sampled_from(PARTS) | st.integers(0, 0xD7FF).map(chr), max_size=60).map("".join))
def test_no_text_has_fewer_tokens(codec: TextCodec, text: str):
    assert codec.least_tokens(text) <= len(codec.encode(text, add_special_tokens=True))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
@pytest.mark.parametrize("part", ["quick brown ", "日本語", "2025-11-21 "])
def test_it_is_not_far_from_how_many_there_are(codec: TextCodec, part: str):
    text = part * 500
    assert codec.least_tokens(text) >= len(codec.encode(text, add_special_tokens=True)) / 50


def spoilt(change: str) -> Tokenizer:
    spec = json.loads(byte_level_tokenizer().to_str())
    if change == "a byte without a token":
        spec["model"]["vocab"] = {key: id_ for key, id_ in spec["model"]["vocab"].items() if key != "!"}
        return Tokenizer.from_str(json.dumps(spec))
    tokenizer = byte_level_tokenizer()
    changes: dict[str, Any] = {
        "normalizer": normalizers.Strip(),
        "pre_tokenizer": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]
        ),
    }
    if change in changes:
        setattr(tokenizer, change, changes[change])
    else:
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


@pytest.mark.parametrize(
    "change", ["a byte without a token", "normalizer", "pre_tokenizer", "a greedy token"]
)
def test_nothing_is_said_where_bytes_may_vanish(change: str):
    assert TextCodec(spoilt(change)).least_tokens("hello " * 500) == 0


@pytest.mark.parametrize("pair", ["\U000105d2\u0307", "\U0001611e\U0001611e", "\U00016d67\U00016d67"])
def test_the_tokenizers_tables_are_no_newer_than_pythons(pair: str):
    """Of Unicode 16, whose pairs an older Python takes for composed."""
    is_composed = normalizers.NFC().normalize_str(pair) == pair
    assert is_composed or not unicodedata.is_normalized("NFC", pair)


@settings(max_examples=300)
@given(
    text=st.text("a\u00e9e\u0301\u0327\u0323\u1100\u1161\u11a8\uac00\uac01\u09c7\u09be\u65e5", max_size=20)
)
def test_composed_by_pieces_is_composed(text: str):
    whole = unicodedata.is_normalized("NFC", text)
    for piece in (1, 2, 3):
        told = is_composed(text, piece=piece)
        runs_on = any(all(map(unicodedata.combining, text[at : at + piece])) for at in range(len(text)))
        assert told == whole or (runs_on and not told)


async def test_a_prompt_that_is_certainly_too_long_is_not_tokenised(monkeypatch: pytest.MonkeyPatch):
    codec, workers = TextCodec(byte_level_tokenizer()), TextWorkers(threads=1)
    prompts = PromptReader(codec=codec, workers=workers, max_prompt_bytes=1 << 20)
    request = generation_pb2.GenerateRequest(text="hello " * 10_000)
    tokens = len(await prompts.read(request, None))
    assert len(await prompts.read(request, None, tokens + 1)) == tokens
    monkeypatch.setattr(TextCodec, "encode", None)
    with pytest.raises(LorikeetError, match="at least") as caught:
        await prompts.read(request, None, 1000)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    workers.close()
