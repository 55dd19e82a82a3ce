import threading
from pathlib import Path

import pytest

from frontend.text.tokenizer import TextCodec
from tests.support.frontend_model_folder import (
    EOS,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    write_model_folder,
)


@pytest.mark.parametrize("text", ["hello world", "naïve 日本 😀", "a\nb  c", EOS, "\x00\x7f"])
def test_the_bytes_of_the_tokens_make_up_the_text(text: str):
    codec = TextCodec(byte_level_tokenizer())
    ids = codec.encode(text, add_special_tokens=True)
    assert b"".join(codec.token_bytes(token) for token in ids).decode() == text


def test_the_bytes_of_a_sentence_piece_vocabulary():
    codec = TextCodec(byte_fallback_tokenizer())
    ids = codec.encode("hello 日", add_special_tokens=True)
    assert b"".join(codec.token_bytes(token) for token in ids).decode() == " hello 日"
    assert codec.token_bytes(1_000_000) == b""


def test_encodes_as_transformers_does(tmp_path: Path):
    from transformers import AutoTokenizer

    folder = write_model_folder(tmp_path)
    theirs = AutoTokenizer.from_pretrained(folder)
    codec = TextCodec(byte_level_tokenizer())
    for text in ("hello world", f"x{EOS}y", "日本語 naïve", ""):
        assert codec.encode(text, add_special_tokens=True) == theirs(text)["input_ids"]
        assert codec.decode(theirs(text)["input_ids"], skip_special_tokens=False) == text


def test_long_texts_are_tokenised_like_short_ones():
    tokenizer = byte_level_tokenizer()
    codec, text = TextCodec(tokenizer), f"hello  world, naïve 日本 {EOS}\n" * 300
    ids = tokenizer.encode(text).ids
    assert codec.encode(text, add_special_tokens=True) == ids
    for skip in (True, False):
        assert codec.decode(ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_others_go_on_while_a_long_text_is_tokenised():
    codec, text = TextCodec(byte_level_tokenizer()), "hello  world, naïve 日本 " * 20_000
    thread = threading.Thread(target=lambda: codec.encode(text, add_special_tokens=True))
    thread.start()
    turns = 0
    while thread.is_alive():
        thread.join(0.001)
        turns += 1
    # One or two where the interpreter is held all the time.
    assert turns > 20


def test_padding_and_truncation_in_the_file_are_ignored():
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(2)
    assert len(TextCodec(tokenizer).encode("abcdef", add_special_tokens=True)) == 6
