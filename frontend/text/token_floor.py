"""How many tokens a text has at least, told without tokenising it."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

_LETTERS = bytes(byte for byte in range(128) if chr(byte).isalnum())
_WIDE = bytes(range(128, 256))
# What each of our counts leaves out: one counts all bytes, one letters and digits, one what is not ASCII.
# Vocabularies have a few very long tokens of blanks or dashes, which say nothing of a text of words.
_OTHERS = tuple(
    bytes(byte for byte in range(256) if byte not in kind) for kind in (bytes(range(256)), _LETTERS, _WIDE)
)
_PIECE = 1 << 14
"""Characters; to look at so many takes 3 ms at the most."""
_KEEPING_SPLITTERS = ("ByteLevel", "Digits", "Metaspace")


class TokenFloor:
    """Counts bytes of a kind: no token covers more of them than the one that has most.

    That holds where every byte of a text ends in some token: in byte-level BPE, and in BPE that spells in
    bytes what it does not know. Of other tokenizers nothing is known, and the floor is 0.

    Args:
        tokenizer: never changed.
        spec: its JSON.
        alphabet: how a byte-level vocabulary spells each byte.
    """

    def __init__(self, tokenizer: Tokenizer, spec: Mapping[str, Any], alphabet: Mapping[str, int]) -> None:
        steps = _parts(spec.get("normalizer"), "normalizers")
        self._composes = any(step["type"] == "NFC" for step in steps)
        # For each count, the most of any token; nothing where nothing is known.
        self._most: tuple[int, ...] = ()
        if _keeps_every_byte(spec, steps, alphabet):
            added = [token["content"] for token in spec.get("added_tokens", ())]
            if tokenizer.normalizer is not None:
                # Of some, this is what is looked for.
                added += [tokenizer.normalizer.normalize_str(content) for content in added]
            covered = [*_spelt(spec, alphabet), *map(str.encode, added)]
            self._most = tuple(max(len(data.translate(None, o)) for data in covered) for o in _OTHERS)

    def tokens(self, text: str) -> int:
        """The least number of tokens. Takes some milliseconds for a million characters of ASCII."""
        if not self._most or (self._composes and not is_composed(text)):
            return 0
        data = text.encode()
        counts = (len(data.translate(None, others)) for others in _OTHERS)
        return max(-(-count // most) for count, most in zip(counts, self._most, strict=True))


def is_composed(text: str, *, piece: int = _PIECE) -> bool:
    """Whether composing, which may take bytes away, changes nothing; then it changes no part, either.

    Told by Python, whose tables are newer than the tokenizer's: what is composed by them is so by older ones.
    It holds the interpreter while it looks, for long where much might compose, so it gets a piece at a time,
    with the first character of the next: one that combines with nothing but its neighbour. False, too, where
    there is no such character for as long as two pieces.
    """
    if text.isascii():
        return True
    start = 0
    while start < len(text):
        end = start + piece
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
            if end - start > 2 * piece:
                return False
        if not unicodedata.is_normalized("NFC", text[start : end + 1]):
            return False
        start = end
    return True


def _spelt(spec: Mapping[str, Any], alphabet: Mapping[str, int]) -> Iterator[bytes]:
    """What each token of the vocabulary covers, or more than that."""
    if spec["model"].get("byte_fallback"):
        # Tokens of one byte are a last resort, and a blank is spelt in three bytes.
        yield from map(str.encode, spec["model"]["vocab"])
        yield from (bytes([byte]) for byte in range(256))
    else:
        table = str.maketrans({character: chr(byte) for character, byte in alphabet.items()})
        yield from (token.translate(table).encode("latin-1", "replace") for token in spec["model"]["vocab"])


def _parts(spec: Mapping[str, Any] | None, several: str) -> list[Mapping[str, Any]]:
    """The steps of what may be a sequence of them."""
    if spec is None:
        return []
    return [step for part in spec[several] for step in _parts(part, several)] if several in spec else [spec]


def _keeps_every_byte(
    spec: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], alphabet: Iterable[str]
) -> bool:
    model = spec["model"]
    splitters = _parts(spec.get("pre_tokenizer"), "pretokenizers")
    if model.get("type") != "BPE" or any(map(model.get, ("continuing_subword_prefix", "end_of_word_suffix"))):
        return False
    # A token that takes in the blanks beside it covers any number of them.
    if any(token["lstrip"] or token["rstrip"] for token in spec.get("added_tokens", ())):
        return False
    is_composing = all(step["type"] == "NFC" for step in steps)
    if not (is_composing or all(map(_only_adds, steps))) or not all(map(_drops_nothing, splitters)):
        return False
    if model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
    is_byte_level = any(part["type"] == "ByteLevel" for part in splitters)
    return is_byte_level and all(character in model["vocab"] for character in alphabet)


def _only_adds(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Prepend":
        return True
    if step["type"] != "Replace" or "String" not in step["pattern"]:
        return False
    before, after = step["pattern"]["String"].encode(), step["content"].encode()
    return all(len(before.translate(None, rest)) <= len(after.translate(None, rest)) for rest in _OTHERS)


def _drops_nothing(splitter: Mapping[str, Any]) -> bool:
    if splitter["type"] in ("Split", "Punctuation"):
        return splitter["behavior"] != "Removed"
    return splitter["type"] in _KEEPING_SPLITTERS
