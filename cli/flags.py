"""Command-line flags made from a service's config class: one per field, documented by its docstring."""

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from cli.output import human_bytes


def flag_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def with_flags(config_class: type[Any], command: Callable[..., None]) -> Callable[..., None]:
    """`command(*own parameters, **fields)` as a function whose signature lists every field of `config_class`.

    Flags arrive as strings (or lists of strings), None when not given: settings.py converts and checks them,
    as it does those of files and environment.
    """
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = own + [_parameter(config_class, field) for field in dataclasses.fields(config_class)]

    def wrapped(**values: Any) -> None:
        command(**values)

    wrapped.__name__ = command.__name__
    wrapped.__doc__ = command.__doc__
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapped.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return wrapped


def to_flags(config: Any) -> list[str]:
    """The flags that make `config` again, whatever the environment and files say."""
    arguments: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values: Sequence[Any] = value if isinstance(value, (tuple, list)) else (value,)
        # Flag and value are one argument, so that a value may begin with a dash.
        arguments += [f"{flag_name(field.name)}={item}" for item in values if item is not None]
    return arguments


def _parameter(config_class: type[Any], field: dataclasses.Field[Any]) -> inspect.Parameter:
    hint = get_type_hints(config_class)[field.name]
    texts = field_texts(config_class)
    kind = list[str] if get_origin(hint) in (tuple, list) else str
    text = texts.get(field.name, "")
    help_text = text[:1].upper() + text[1:]
    if field.default is not dataclasses.MISSING and field.default not in (None, "", ()):
        default = human_bytes(field.default) if field.name.endswith("_bytes") else field.default
        help_text += f" [dim]\\[default: {default}][/dim]"
    option = typer.Option(flag_name(field.name), help=help_text, metavar=_metavar(field.name, hint))
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _metavar(name: str, hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is Literal:
        return "|".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) in (tuple, list):
        hint = get_args(hint)[0]
    if name.endswith("_bytes"):
        return "SIZE"
    if name.endswith("_seconds"):
        return "SECONDS"
    if getattr(hint, "__name__", "") == "Path":
        return "DIR" if name.endswith(("_dir", "_folder")) or name == "roots" else "FILE"
    if name in ("store", "executor") or name.endswith("listen"):
        return "ADDRESS"
    return {"int": "N", "float": "X", "bool": "true|false"}.get(getattr(hint, "__name__", ""), "TEXT")


def field_texts(config_class: type[Any]) -> dict[str, str]:
    """The `Args:` of a config class's docstring: field to text, for the fields that it describes."""
    _, _, section = (inspect.getdoc(config_class) or "").partition("\nArgs:\n")
    # Up to the next line that is not indented. A text starts after its field's name, wherever lines break.
    body = " ".join(re.split(r"\n(?=\S)", section)[0].split())
    found = [
        (match.start(), match.end(), field.name)
        for field in dataclasses.fields(config_class)
        if (match := re.search(rf"(?:^| ){field.name}: ", body))
    ]
    ends = [start for start, _, _ in found[1:]] + [len(body)]
    return {name: body[start:end].strip() for (_, start, name), end in zip(found, ends, strict=True)}
