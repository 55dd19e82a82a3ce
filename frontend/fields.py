"""Checks of one field of a request, whichever it is. Errors name it, its value and what is allowed."""

from typing import Any

from rpc.errors import LorikeetError, invalid_argument

MAX_ID_CHARACTERS = 128


def out_of_range(field: str, value: object, allowed: str) -> LorikeetError:
    return invalid_argument(
        "VALUE_OUT_OF_RANGE", f"{field} is {value}: allowed is {allowed}", field=field, value=str(value)
    )


def check_token_ids(field: str, ids: Any, vocab_size: int) -> None:
    """Raises INVALID_ARGUMENT where an id is none of the model's."""
    if ids and (largest := max(ids)) >= vocab_size:
        raise out_of_range(
            f"a token id in {field}", largest, f"0 to {vocab_size - 1}, the model's vocabulary"
        )


def checked_id(field: str, value: str) -> str:
    """A text of the client's that names something. Raises INVALID_ARGUMENT for what no name is like."""
    if len(value) > MAX_ID_CHARACTERS:
        raise out_of_range(field, f"{len(value)} characters long", f"at most {MAX_ID_CHARACTERS}")
    # These go into logs.
    if not value.isprintable():
        raise invalid_argument("VALUE_NOT_PRINTABLE", f"{field} holds control characters: leave them out")
    return value
