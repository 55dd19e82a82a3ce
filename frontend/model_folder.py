"""What a frontend needs of a checkpoint's folder: tokenizer, chat template, sizes and sampling defaults."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from frontend.sampling import SamplingDefaults
from frontend.text.chat_template import ChatTemplate
from frontend.text.tokenizer import TextCodec
from rpc.digests import file_digest

_SPECIAL_TOKEN_KEYS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model as its frontend sees it, read once at start."""

    model_type: str
    vocab_size: int
    codec: TextCodec
    tokenizer_digest: str
    template: ChatTemplate | None
    special_tokens: Mapping[str, str]
    defaults: SamplingDefaults


def read_model_folder(folder: Path, *, max_prompt_bytes: int) -> ModelFolder:
    """Reads a folder's configurations, tokenizer and chat template; weights are left alone.

    Raises ValueError, naming the file, where one is missing or malformed.
    """
    config = _read_json(folder / "config.json")
    text_config = config.get("text_config", config)
    tokenizer_config = _read_json(folder / "tokenizer_config.json", optional=True)
    tokenizer_file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"{tokenizer_file} cannot be read as a tokenizer: {error}") from error
    codec = TextCodec(tokenizer)
    return ModelFolder(
        model_type=str(config.get("model_type", "")),
        vocab_size=int(text_config.get("vocab_size", codec.vocab_size)),
        codec=codec,
        tokenizer_digest=file_digest(tokenizer_file),
        template=_read_template(folder, tokenizer_config, max_prompt_bytes),
        special_tokens=_special_tokens(tokenizer_config),
        defaults=_read_defaults(folder / "generation_config.json"),
    )


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _read_template(
    folder: Path, tokenizer_config: Mapping[str, Any], max_prompt_bytes: int
) -> ChatTemplate | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        origin, source = str(file), file.read_text(encoding="utf-8")
    else:
        origin = f"chat_template of {folder / 'tokenizer_config.json'}"
        source = _default_template(tokenizer_config.get("chat_template"), origin)
    if source is None:
        return None
    try:
        return ChatTemplate(
            source, special_tokens=_special_tokens(tokenizer_config), max_bytes=max_prompt_bytes
        )
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def _default_template(templates: Any, origin: str) -> str | None:
    """The template used when none is named: the only one, or of several the one named "default"."""
    if templates is None or isinstance(templates, str):
        return templates
    try:
        named = {entry["name"]: entry["template"] for entry in templates}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{origin} is neither a string nor a list of named templates") from error
    if "default" in named:
        return named["default"]
    if len(named) == 1:
        return next(iter(named.values()))
    raise ValueError(f'{origin} names {", ".join(sorted(named))} but no "default"')


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for key in _SPECIAL_TOKEN_KEYS:
        value = tokenizer_config.get(key)
        # Older files spell a token with its stripping rules around it.
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[key] = text
    return tokens


def _read_defaults(path: Path) -> SamplingDefaults:
    content = _read_json(path, optional=True)
    try:
        return SamplingDefaults.from_generation_config(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
