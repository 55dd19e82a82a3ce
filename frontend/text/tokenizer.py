"""The model's tokenizer: text to ids and back, long texts off the event loop."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from frontend.text.detokenizer import Detokenizer
from frontend.text.token_floor import TokenFloor

# Texts are tokenised one at a time, each on one thread: a pool of more would only be in the way of forks.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHORT_TEXT = 2048
"""Characters or tokens that take well under a millisecond: less than a thread's detour is worth."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TextCodec:
    """Encodes prompts and decodes completions with one tokenizer, which is never changed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        spec = json.loads(tokenizer.to_str())
        self._token_bytes = _token_bytes_reader(spec)
        self._floor = TokenFloor(tokenizer, spec, _byte_alphabet())
        self._added_ids = frozenset(tokenizer.get_added_tokens_decoder())

    @property
    def vocab_size(self) -> int:
        """Ids that have a token; the model may have more ids than that."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def least_tokens(self, text: str) -> int:
        """How many tokens a text has at least, far sooner than `encode` tells how many it has."""
        return self._floor.tokens(text)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) <= SHORT_TEXT:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        # In a batch of one: only those let other threads have the interpreter.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        if len(ids) <= SHORT_TEXT:
            return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return self._tokenizer.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)[0]

    def detokenizer(self, *, skip_special_tokens: bool, prompt_ids: Sequence[int]) -> Detokenizer:
        """A detokenizer for one completion of the prompt."""
        return Detokenizer(self._tokenizer, skip_special_tokens=skip_special_tokens, prompt_ids=prompt_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, as UTF-8, or part of a character's UTF-8; b"" for an unknown id."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        return token.encode() if token_id in self._added_ids else self._token_bytes(token)


def _token_bytes_reader(spec: Mapping[str, Any]) -> Callable[[str], bytes]:
    """How this vocabulary spells bytes: GPT-2's alphabet, or SentencePiece's "<0xE6>" and "▁"."""
    if '"ByteLevel"' in json.dumps(spec.get("decoder")):
        alphabet = _byte_alphabet()

        def read_byte_level(token: str) -> bytes:
            if all(character in alphabet for character in token):
                return bytes(alphabet[character] for character in token)
            return token.encode()

        return read_byte_level

    def read_sentence_piece(token: str) -> bytes:
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace("\u2581", " ").encode()

    return read_sentence_piece


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}
