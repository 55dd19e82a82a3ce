"""Text of one completion, token by token."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 8
# A character has at most 4 bytes, so of tokens that gave no text yet only the last 3 can belong to one that
# is still incomplete; with more than this many waiting, the others are garbage or invisible.
_MAX_PENDING = 16
_MAX_INCOMPLETE = 3


class Detokenizer:
    """Incremental text: the pieces, joined, equal the decoded whole wherever that is valid UTF-8.

    A DecodeStream does the work. Around it: the prompt's last tokens as context (so that a leading space
    survives in vocabularies that strip it), the incomplete character at the end, and a bound on what a run of
    invalid bytes or invisible tokens costs, since the stream decodes everything since its last output anew.
    """

    __slots__ = ("_context", "_pending", "_skip", "_step", "_tokenizer")

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool, prompt_ids: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._pending: list[int] = []
        self._restart(self._clean_context(prompt_ids))

    def step(self, token_id: int) -> str:
        """Adds a token; returns the text that it completes, often that of the token, sometimes ""."""
        pending = self._pending
        pending.append(token_id)
        try:
            text = self._step(self._tokenizer, token_id)
        except Exception:  # the stream raises a bare Exception when earlier text would change
            return self._resynchronise()
        if text is not None:
            self._context = pending
            self._pending = []
            return text
        if len(pending) >= _MAX_PENDING:
            return self._resynchronise()
        return ""

    def flush(self) -> str:
        """Returns the text of an incomplete end (as replacement characters). Nothing may follow."""
        return self._text_after_context(self._pending) if self._pending else ""

    def _resynchronise(self) -> str:
        """Gives up waiting: returns all text but that of a last incomplete character, and starts afresh."""
        pending = self._pending
        whole = self._text_after_context(pending)
        for count in range(min(_MAX_INCOMPLETE, len(pending)), 0, -1):
            kept = pending[-count:]
            incomplete = self._decode(kept)
            text = self._text_after_context(pending[:-count])
            if incomplete and not incomplete.strip(_REPLACEMENT) and text + incomplete == whole:
                break
        else:
            kept, text = [], whole
        self._restart(
            self._clean_context(self._context + pending[: len(pending) - len(kept)]) or self._context
        )
        self._pending = kept
        for token_id in kept:
            self._step(self._tokenizer, token_id)
        return text

    def _restart(self, context: list[int]) -> None:
        self._context = context
        self._step = DecodeStream(ids=list(context), skip_special_tokens=self._skip).step

    def _clean_context(self, ids: Sequence[int]) -> list[int]:
        """The last few ids whose text stands for itself: whole characters, and not nothing."""
        for count in range(min(_CONTEXT_TOKENS, len(ids)), 0, -1):
            context = list(ids[-count:])
            text = self._decode(context)
            if text and _REPLACEMENT not in text:
                return context
        return []

    def _text_after_context(self, ids: list[int]) -> str:
        before = self._decode(self._context)
        whole = self._decode(self._context + ids)
        return whole[len(before) :] if whole.startswith(before) else self._decode(ids)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
