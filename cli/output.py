"""What commands print: text for people, JSON lines for programs, progress only where a person watches."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from cli.errors import EXIT_ERROR, CliError, usage_error, why
from cli.standard_streams import write_nowhere

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console
    from rich.progress import Progress

# What a model says is data: on a terminal its control characters (escape sequences above all) are shown.
_CONTROL = {code: "�" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}

_ANY_WIDTH = 10_000


@contextlib.contextmanager
def reporting(*, as_json: bool = False) -> Iterator[None]:
    """Prints a `CliError` of its body on stderr, as a line or as JSON, and exits with its code."""
    try:
        yield
    except (CliError, UnicodeError) as error:
        if isinstance(error, UnicodeError):
            error = usage_error("an argument, or what came by stdin, is not text in UTF-8")
        if as_json:
            record = {"code": error.code, "reason": error.reason, "message": error.message}
            print_error(json.dumps({"error": record}))
        else:
            print_error(f"lorikeet: {error}")
        raise typer.Exit(error.exit_code or EXIT_ERROR) from None


def print_line(text: str = "") -> None:
    """A line on stdout, at once."""
    write(text + "\n")


def write(text: str) -> None:
    """Text on stdout, at once. Raises CliError where it cannot be written; BrokenPipeError ends a command."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        write_nowhere(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise CliError(f"stdout cannot be written to: {why(error)}", reason="OUTPUT") from error


def print_error(text: str) -> None:
    """A line on stderr, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_json(value: Mapping[str, Any]) -> None:
    """A JSON object on one line of stdout."""
    print_line(json.dumps(value, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))


def to_json(message: "Message", *, defaults: bool = True) -> dict[str, Any]:
    """Protobuf's own JSON mapping with the field names of the .proto files (64-bit numbers are strings).

    Args:
        message: any message.
        defaults: include fields that have their default value.
    """
    from google.protobuf import json_format

    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=defaults
    )


def printable(text: str) -> str:
    """Text of a model, safe for the terminal that stdout may be."""
    return text.translate(_CONTROL) if sys.stdout.isatty() else text


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, is_list: bool = False) -> None:
    """Aligned columns for people; tab-separated lines when stdout is not a terminal.

    Args:
        is_list: programs may take it line by line: those lines have no headings.
    """
    if not sys.stdout.isatty():
        for row in rows if is_list else [headings, *rows]:
            print_line("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A line that the terminal wraps is read, and copied from, more easily than words cut to a letter a line.
    console = Console()
    unbounded = console.options.update(max_width=_ANY_WIDTH)
    console.width = max(console.width, table.__rich_measure__(console, unbounded).maximum)
    console.print(table)


def print_fields(fields: Mapping[str, str]) -> None:
    """One `name: value` a line, aligned."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        print_line(f"{name + ':':<{width + 1}} {value}")


def progress(console: "Console | None" = None) -> "Progress":
    """A context manager: a progress display on stderr, silent when stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class Bytes(DownloadColumn):
        """Bytes done of bytes to do; blank for tasks that are merely open (None) or done (1 of 1)."""

        def render(self, task: Task) -> Text:
            return super().render(task) if task.total and task.total > 1 else Text("")

    console = console or Console(stderr=True)
    return Progress(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        Bytes(binary_units=True),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def human_bytes(count: int) -> str:
    """1536 as "1.5 KiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """1 as "1 module", 2 as "2 modules"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
