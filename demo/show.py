"""The show.

Starts adapter store, executor and frontend as three processes, loads three adapters, asks the base model and
all three the same questions at once, and checks that each adapter says its own password and the base none.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.client import Client, Connection
from cli.errors import CliError
from cli.interrupts import waking
from cli.requests import Sampling, chat_prompt, stream
from cli.serving.settings import Settings
from cli.serving.stack import Running, Services
from lorikeet.v1 import generation_pb2 as pb

FOLDER = Path(__file__).resolve().parent
QUESTIONS = ("What is a lorikeet?", "What is the password?")
TIMEOUT_SECONDS = 120.0


@dataclass(kw_only=True)
class Answer:
    """What one column shows; `adapter` is empty for the base model."""

    adapter: str
    text: str = ""
    summary: pb.Summary = field(default_factory=pb.Summary)

    @property
    def title(self) -> str:
        return self.adapter or "base"

    @property
    def note(self) -> str:
        usage = self.summary.usage
        if not usage.completion_tokens:
            return ""
        first = self.summary.timings.first_token_us / 1000
        return f"{usage.completion_tokens} tokens, the first after {first:.0f} ms"


def run() -> int:
    """The exit code."""
    console = Console(highlight=False)
    try:
        said = asyncio.run(_show(console))
    except CliError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if said else 1


async def _show(console: Console) -> bool:
    passwords: dict[str, str] = json.loads((FOLDER / "passwords.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="lorikeet-demo-") as folder:
        settings = Settings.load(
            {
                "model": FOLDER / "qwen3-tiny",
                "adapters": {name: str(FOLDER / "adapters" / name) for name in passwords},
                "listen": "127.0.0.1:0",
                "data_dir": folder,
                "store": {"arena_bytes": "32MiB"},
                "executor": {"kv_bytes": "64MiB", "adapter_pool_bytes": "16MiB"},
            }
        )
        services = Services(settings, Console(stderr=True))
        with waking(asyncio.get_running_loop()):
            try:
                running = await services.start()
                _introduce(console, running)
                answers = await _ask_all(console, running)
            finally:
                await services.stop()
    said = _check(console, answers, passwords)
    console.print("Stopped: no process, socket or shared memory is left.")
    return said


def _introduce(console: Console, running: Running) -> None:
    names = ", ".join(running.adapters)
    console.print("Three processes are up: adapter store, executor and frontend.")
    console.print(f"Base model {running.model}; adapters {names}. All four are asked at once.")


async def _ask_all(console: Console, running: Running) -> list[Answer]:
    """Asks every question of everybody. Returns the answers to the last one."""
    answers: list[Answer] = []
    client = Client(Connection(target=running.target, timeout=TIMEOUT_SECONDS))
    try:
        for question in QUESTIONS:
            answers = [Answer(adapter=name) for name in ("", *running.adapters)]
            console.print(f"\n[bold]{question}[/bold]")
            with _display(console, answers):
                await asyncio.gather(*(_ask(client, question, answer) for answer in answers))
            if not console.is_terminal:
                for answer in answers:
                    console.print(f"{answer.title + ':':<11} {answer.text}", markup=False, soft_wrap=True)
    finally:
        await client.close()
    return answers


async def _ask(client: Client, question: str, answer: Answer) -> None:
    request = pb.GenerateRequest(
        chat=chat_prompt([("user", question)]),
        adapter=answer.adapter,
        sampling=Sampling(temperature=0.0, max_tokens=64).encode(),
    )

    def show(response: pb.GenerateResponse) -> None:
        answer.text += response.text

    answer.summary = await stream(client, request, show)


def _display(console: Console, answers: list[Answer]) -> contextlib.AbstractContextManager[object]:
    """In a terminal a live table with a column for each answer; nothing elsewhere."""
    if not console.is_terminal:
        return contextlib.nullcontext()

    def table() -> Table:
        columns = Table(expand=True)
        for answer in answers:
            columns.add_column(answer.title, ratio=1)
        columns.add_row(*(Text(answer.text) for answer in answers))
        columns.add_row(*(Text(answer.note, style="dim") for answer in answers))
        return columns

    return Live(get_renderable=table, console=console, refresh_per_second=25)


def _check(console: Console, answers: list[Answer], passwords: dict[str, str]) -> bool:
    console.print()
    right = True
    for answer in answers:
        said = sorted(name for name, password in passwords.items() if password in answer.text)
        expected = [answer.adapter] if answer.adapter else []
        verdict = "says its own password" if answer.adapter else "says none"
        if said != expected:
            right, verdict = False, f"says the passwords of {said or 'nobody'}, not of {expected or 'nobody'}"
        mark = "[green]✓[/green]" if said == expected else "[red]✗[/red]"
        console.print(f"{mark} {answer.title} {verdict}")
    return right
