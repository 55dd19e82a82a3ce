"""Chat messages to prompt text, through the model's own Jinja template in a sandbox.

The environment is what templates on the Hugging Face hub are written for: trimmed blocks, loop controls,
`tojson` that keeps characters as they are, `raise_exception`, `strftime_now`, and a `generation` tag that
renders its body.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rpc.errors import LorikeetError, invalid_argument

# In characters. While JSON is parsed all streams stand still, and it may take many times its size in memory.
_MAX_VARIABLES = 1 << 20
RESERVED_VARIABLES = frozenset({"messages", "add_generation_prompt"})


class ChatTemplate:
    """A compiled template with the variables that the tokenizer's configuration provides.

    Raises ValueError where the source is not a valid template.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str],
        max_bytes: int,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        try:
            self._template = _environment(now).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template is broken at line {error.lineno}: {error.message}"
            ) from error
        self._special_tokens = dict(special_tokens)
        self._max_bytes = max_bytes

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """Renders a chat; stops once the text is too long.

        Raises INVALID_ARGUMENT where the template refuses the messages, fails on them, or writes too much.
        """
        context = {
            "tools": None,
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(context):
                size += len(piece)
                if size > self._max_bytes:
                    raise _too_long(self._max_bytes)
                pieces.append(piece)
        except LorikeetError:
            raise
        except Exception as error:  # templates raise whatever their expressions do
            raise invalid_argument(
                "CHAT_TEMPLATE_REFUSED", f"the chat template does not accept this chat: {error}"
            ) from error
        return "".join(pieces)


def parse_variables(text: str) -> dict[str, Any]:
    """Reads `template_variables_json`: a JSON object, empty text for none. Raises INVALID_ARGUMENT."""
    if not text:
        return {}
    if len(text) > _MAX_VARIABLES:
        raise invalid_argument(
            "CHAT_VARIABLES_TOO_LARGE",
            f"chat.template_variables_json is {len(text)} characters long: at most {_MAX_VARIABLES} are read",
        )
    try:
        variables = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_argument(
            "CHAT_VARIABLES_MALFORMED", f"chat.template_variables_json is not valid JSON: {error}"
        ) from error
    if not isinstance(variables, dict):
        raise invalid_argument(
            "CHAT_VARIABLES_MALFORMED",
            f"chat.template_variables_json is a JSON {type(variables).__name__}: "
            'give an object such as {"enable_thinking": false}',
        )
    if taken := RESERVED_VARIABLES & variables.keys():
        raise invalid_argument(
            "CHAT_VARIABLES_RESERVED",
            f"chat.template_variables_json sets {', '.join(sorted(taken))}: use the request's own fields",
        )
    return variables


def _too_long(max_bytes: int) -> LorikeetError:
    return invalid_argument(
        "PROMPT_TOO_LARGE", f"the rendered chat is over {max_bytes} bytes: send fewer or shorter messages"
    )


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; in a prompt it is its body."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body).set_lineno(line)


def _environment(now: Callable[[], datetime]) -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: now().strftime(format)  # noqa: A006 - templates name it
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
