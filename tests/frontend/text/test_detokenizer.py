from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.text.detokenizer import Detokenizer
from tests.support.frontend_model_folder import EOS, byte_fallback_tokenizer, byte_level_tokenizer, token_id

BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()
BYTE_LEVEL_IDS = st.integers(0, BYTE_LEVEL.get_vocab_size() - 1)
TEXTS = st.text(st.sampled_from("ab h é日😀\u200d \n�w"), max_size=30)


def pieces_of(detokenizer: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.step(token) for token in ids), detokenizer.flush()]


@given(ids=st.lists(BYTE_LEVEL_IDS, max_size=80), skip=st.booleans())
def test_any_ids_of_a_byte_level_vocabulary_equal_the_full_decode(ids: list[int], skip: bool):
    detokenizer = Detokenizer(BYTE_LEVEL, skip_special_tokens=skip)
    assert "".join(pieces_of(detokenizer, ids)) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip)


@given(prompt=st.lists(BYTE_LEVEL_IDS, max_size=20), text=TEXTS)
def test_valid_text_is_the_same_after_any_prompt(prompt: list[int], text: str):
    detokenizer = Detokenizer(BYTE_LEVEL, skip_special_tokens=True, prompt_ids=prompt)
    assert "".join(pieces_of(detokenizer, BYTE_LEVEL.encode(text).ids)) == text


@given(prompt=TEXTS.filter(lambda text: text.strip() != "" and "�" not in text), text=TEXTS)
def test_byte_fallback_continues_the_prompt(prompt: str, text: str):
    ids = BYTE_FALLBACK.encode(prompt + " x" + text).ids
    whole = BYTE_FALLBACK.decode(ids)
    start = len(BYTE_FALLBACK.encode(prompt).ids)
    detokenizer = Detokenizer(BYTE_FALLBACK, skip_special_tokens=True, prompt_ids=ids[:start])
    completion = "".join(pieces_of(detokenizer, ids[start:]))
    assert BYTE_FALLBACK.decode(ids[:start]) + completion == whole


@given(ids=st.lists(st.integers(0, BYTE_FALLBACK.get_vocab_size() - 1), max_size=80))
def test_garbage_in_a_byte_fallback_vocabulary_never_gets_stuck(ids: list[int]):
    detokenizer = Detokenizer(BYTE_FALLBACK, skip_special_tokens=True)
    h, e = token_id(BYTE_FALLBACK, "h"), token_id(BYTE_FALLBACK, "e")
    assert "".join(pieces_of(detokenizer, [*ids, h, e])).endswith("he")


def test_a_split_character_waits_for_its_last_byte():
    ids = [token_id(BYTE_LEVEL, token) for token in ("ð", "Ł", "ĺ", "Ģ")]
    detokenizer = Detokenizer(BYTE_LEVEL, skip_special_tokens=True)
    assert pieces_of(detokenizer, ids) == ["", "", "", "😀", ""]
    detokenizer = Detokenizer(BYTE_LEVEL, skip_special_tokens=True)
    assert pieces_of(detokenizer, ids[:3]) == ["", "", "", "�"]


def test_a_leading_space_survives_where_the_decoder_strips_it():
    prompt, word = BYTE_FALLBACK.encode("hello").ids, token_id(BYTE_FALLBACK, "▁wo")
    detokenizer = Detokenizer(BYTE_FALLBACK, skip_special_tokens=True, prompt_ids=prompt)
    assert detokenizer.step(word) == " wo"


def test_special_tokens_are_left_out_or_kept():
    ids = [token_id(BYTE_LEVEL, "a"), token_id(BYTE_LEVEL, EOS), token_id(BYTE_LEVEL, "b")]
    assert "".join(pieces_of(Detokenizer(BYTE_LEVEL, skip_special_tokens=True), ids)) == "ab"
    assert "".join(pieces_of(Detokenizer(BYTE_LEVEL, skip_special_tokens=False), ids)) == f"a{EOS}b"


@pytest.mark.parametrize("token", [EOS, "ÿ", "ð"])
def test_a_long_run_without_text_waits_for_a_bounded_number_of_tokens(token: str):
    ids = [token_id(BYTE_LEVEL, token)] * 300
    detokenizer = Detokenizer(BYTE_LEVEL, skip_special_tokens=True)
    text = ""
    for each in ids:
        text += detokenizer.step(each)
        assert len(detokenizer._pending) < 16
    assert text + detokenizer.flush() == BYTE_LEVEL.decode(ids)
