"""Files that a trainer saves beside an adapter and that say how its prompts are made.

The chat template is used. The tokenizer is the base's: what an adapter's own says is looked at only for
tokens that the base cannot have.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_store.formats.layout import PackLayout
from adapter_store.formats.strict_json import load_object, printable
from adapter_store.formats.targets import names
from rpc.errors import LorikeetError, invalid_argument

TEMPLATE_NAME = "chat_template.jinja"
TOKENIZER_NAME = "tokenizer_config.json"
ADDED_TOKENS_NAME = "added_tokens.json"

PROMPT_FILES = (TEMPLATE_NAME, TOKENIZER_NAME, ADDED_TOKENS_NAME)
"""The names of these files; all are optional."""

MAX_PROMPT_FILE_BYTES = 4 << 20
_MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PromptFiles:
    """What an adapter brings for its prompts, and what is worth knowing about it."""

    chat_template: str | None = None
    notes: tuple[str, ...] = ()


def read_prompt_files(folder: Path, layout: PackLayout) -> PromptFiles:
    """Reads the prompt files of a folder that we own.

    A template in a file of its own goes before one in the tokenizer's configuration, as in transformers.

    Raises:
        LorikeetError: INVALID_ARGUMENT for malformed files, and for tokens that the base has no row for.
    """
    tokenizer = _load_json(folder / TOKENIZER_NAME)
    added = _added_tokens(tokenizer, _load_json(folder / ADDED_TOKENS_NAME))
    _check_added(added, layout)
    notes: list[str] = []
    if added:
        notes.append(
            f"the adapter's tokenizer names {len(added)} special tokens, all within the base's vocabulary; "
            "prompts are tokenised by the base's own tokenizer, and whether both agree is not known here"
        )
    template, where = _find_template(folder, tokenizer)
    if template is not None:
        if len(template.encode("utf-8", "surrogatepass")) > _MAX_TEMPLATE_BYTES:
            raise _bad(where, f"its chat template is larger than {_MAX_TEMPLATE_BYTES} bytes")
        if not template.isascii():
            _check_encodable(template, where)
        notes.append(f"the chat template in its {where} is used for the adapter's chat prompts")
    return PromptFiles(chat_template=template, notes=tuple(notes))


def read_chat_template(folder: Path) -> str | None:
    """The chat template alone, of a folder that `read_prompt_files` has taken."""
    return _find_template(folder, _load_json(folder / TOKENIZER_NAME))[0]


def _find_template(folder: Path, tokenizer: dict[str, Any] | None) -> tuple[str | None, str]:
    """The template, if there is one, and the file that it stands in."""
    template = _read_text(folder / TEMPLATE_NAME)
    if template is None and tokenizer is not None:
        return _template_of(tokenizer), TOKENIZER_NAME
    return template, TEMPLATE_NAME


def _template_of(tokenizer: dict[str, Any]) -> str | None:
    """The template of a tokenizer's configuration: text, or the "default" of a list of named ones."""
    value = tokenizer.get("chat_template")
    if isinstance(value, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in value
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        if "default" not in named:
            raise _bad(TOKENIZER_NAME, "it has several chat templates and none is named default")
        value = named["default"]
    if value is not None and not isinstance(value, str):
        raise _bad(TOKENIZER_NAME, "its chat_template is neither text nor a list of named templates")
    return value


def _added_tokens(tokenizer: dict[str, Any] | None, added: dict[str, Any] | None) -> dict[int, str]:
    """Tokens by id, from both places in which they may stand."""
    found: dict[int, str] = {}
    for token, number in (added or {}).items():
        if type(number) is not int or number < 0:
            raise _bad(ADDED_TOKENS_NAME, f"token {printable(token, 50)!r} has an impossible id")
        found[number] = token
    decoder = (tokenizer or {}).get("added_tokens_decoder")
    if decoder is not None and not isinstance(decoder, dict):
        raise _bad(TOKENIZER_NAME, "its added_tokens_decoder is no object")
    for number, token in (decoder or {}).items():
        if not (number.isascii() and number.isdigit() and len(number) < 12) or not isinstance(token, dict):
            raise _bad(TOKENIZER_NAME, f"added_tokens_decoder: {printable(number, 50)!r} is no token's id")
        found[int(number)] = str(token.get("content", ""))
    return found


def _check_added(added: dict[int, str], layout: PackLayout) -> None:
    sizes = [slice_.inputs for slice_ in layout.slices if names("embed_tokens", slice_.module)]
    if sizes and added and max(added) >= min(sizes):
        number = max(added)
        raise invalid_argument(
            "ADDED_TOKENS",
            f"the adapter's tokenizer has the token {printable(added[number], 50)!r} with id {number}, and "
            f"{layout.base_name!r} has {min(sizes)} tokens: an adapter for more of them cannot be served",
        )


def _load_json(path: Path) -> dict[str, Any] | None:
    data = _read(path)
    if data is None:
        return None
    try:
        return load_object(data)
    except ValueError as error:
        raise _bad(path.name, f"not valid JSON: {error}") from error


def _read_text(path: Path) -> str | None:
    data = _read(path)
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _bad(path.name, "it is not UTF-8") from error


def _read(path: Path) -> bytes | None:
    if not path.exists():
        return None
    if path.stat().st_size > MAX_PROMPT_FILE_BYTES:
        raise _bad(path.name, f"it is larger than {MAX_PROMPT_FILE_BYTES} bytes")
    return path.read_bytes()


def _check_encodable(template: str, where: str) -> None:
    try:
        template.encode()
    except UnicodeEncodeError as error:
        raise _bad(where, "its chat template holds text that is not Unicode") from error


def _bad(file: str, what: str) -> LorikeetError:
    return invalid_argument("BAD_FILE", f"{file}: {what}", file=file)
