"""Tiny model folders without weights, as a frontend reads them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

EOS = "<|im_end|>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", EOS)
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_CORPUS = (
    "the quick brown fox jumps over the lazy dog and then the other one",
    "hello world, this is a small text about nothing in particular",
    "äöü ß 日本語 naïve café 😀 👩‍👩‍👧 Привет",
)


def byte_level_tokenizer() -> Tokenizer:
    """Three special tokens (ids 0 to 2), all bytes, and a few merges; about 380 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """As SentencePiece models spell things: "▁" for a space, "<0xE6>" for bytes, a leading space stripped."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    pieces = ["▁", *"abdehlorw", "▁h", "▁he", "▁hel", "▁hell", "▁hello", "▁a", "▁w", "▁wo"]
    vocab |= {piece: 259 + index for index, piece in enumerate(pieces)}
    merges = [("▁", "h"), ("▁h", "e"), ("▁he", "l"), ("▁hel", "l"), ("▁hell", "o"), ("▁", "a"), ("▁", "w")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[*merges, ("▁w", "o")],
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(  # pyright: ignore
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that exists."""
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def write_model_folder(
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: Any = CHAT_TEMPLATE,
    generation_config: dict[str, Any] | None = None,
) -> Path:
    """Writes config.json, tokenizer.json, tokenizer_config.json and, where given, generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or byte_level_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "qwen3", "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer_config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # As older releases of transformers wrote it.
        "eos_token": {"__type": "AddedToken", "content": EOS, "lstrip": False, "rstrip": False},
        "pad_token": SPECIAL_TOKENS[0],
    }
    if chat_template is not None:
        tokenizer_config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder
