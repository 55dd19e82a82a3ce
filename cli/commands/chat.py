"""`lorikeet chat`: a conversation in the terminal."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cli.commands.options import ConfigFile, Target, Timeout, connection
from cli.errors import CliError
from cli.interrupts import end_in_order, waking
from cli.output import print_error, print_line, printable, reporting, write

if TYPE_CHECKING:
    from cli.client import Client, Connection
    from cli.requests import Sampling
    from lorikeet.v1 import generation_pb2 as pb

T = TypeVar("T")

HELP = """\
/adapter NAME   answer with this adapter from now on; /adapter alone goes back to the base model
/adapters       list what is loaded
/system TEXT    set the system message; /system alone removes it
/clear          forget the conversation
/quit           leave (so does Ctrl-D); Ctrl-C stops an answer"""


def chat(
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", metavar="NAME", help="Adapter to begin with; none for the base.")
    ] = "",
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Same seed, same tokens.")] = None,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Talk with the model, switching adapters as you go.

    Type /help for the commands inside. Lines piped in are taken as turns, one each.

    [bold]Example[/bold]

        lorikeet chat --adapter alice --system "Answer in one sentence."
    """
    with reporting():
        from cli.requests import Sampling

        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
        where = connection(target, timeout, config)
        with _Session(where) as session:
            _talk(session, Conversation(adapter=adapter, system=system), sampling)


@dataclass(kw_only=True)
class Conversation:
    """What has been said, and who answers next."""

    adapter: str = ""
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)

    def messages(self, question: str) -> list[tuple[str, str]]:
        """(role, content) of everything, with a new question at the end."""
        start = [("system", self.system)] if self.system else []
        return [*start, *self.turns, ("user", question)]

    def record(self, question: str, answer: str) -> None:
        self.turns += [("user", question), ("assistant", answer)]


class _Session:
    """One connection and one event loop for the whole conversation."""

    def __init__(self, where: "Connection") -> None:
        self.where = where
        self._runner = asyncio.Runner()

    def __enter__(self) -> "_Session":
        from cli.client import Client

        async def connect() -> Client:
            return Client(self.where)

        end_in_order()
        with contextlib.ExitStack() as opened:
            runner = opened.enter_context(self._runner)
            opened.enter_context(waking(runner.get_loop()))
            self.client = runner.run(connect())
            opened.callback(lambda: runner.run(self.client.close()))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def call(self, body: "Callable[[Client], Coroutine[Any, Any, T]]") -> T:
        """Raises CliError; KeyboardInterrupt cancels the call first."""
        import grpc

        from cli.client import explain
        from rpc.errors import from_rpc

        try:
            return self._runner.run(body(self.client))
        except grpc.RpcError as error:
            raise explain(from_rpc(error), self.where) from error


def _talk(session: _Session, conversation: Conversation, sampling: "Sampling") -> None:
    interactive = sys.stdin.isatty()
    model = session.call(_get_model)
    if not model.has_chat_template:
        raise CliError(
            f"{model.name} has no chat template: use `lorikeet generate`", reason="NO_CHAT_TEMPLATE"
        )
    if interactive:
        _use_history()
        print_error(f"{model.name}; /help lists the commands")
    while (line := _read(conversation, interactive=interactive)) is not None:
        if not line:
            continue
        try:
            if line.startswith("/"):
                if not _command(session, conversation, line):
                    return
            else:
                _answer(session, conversation, line, sampling)
        except CliError as error:
            if not interactive:
                raise
            print_error(f"lorikeet: {error}")
        except KeyboardInterrupt:
            if not interactive:
                raise
            print_line()


async def _get_model(client: "Client") -> "pb.GetModelResponse":
    from lorikeet.v1 import generation_pb2 as pb

    return await client.generation.GetModel(pb.GetModelRequest(), timeout=client.connection.deadline)


def _answer(session: _Session, conversation: Conversation, question: str, sampling: "Sampling") -> None:
    from cli.requests import chat_prompt, stream
    from lorikeet.v1 import generation_pb2 as pb

    request = pb.GenerateRequest(
        chat=chat_prompt(conversation.messages(question)),
        adapter=conversation.adapter,
        sampling=sampling.encode(),
    )
    parts: list[str] = []

    def show(response: pb.GenerateResponse) -> None:
        parts.append(response.text)
        write(printable(response.text))

    try:
        session.call(lambda client: stream(client, request, show))
    finally:
        # An answer that was stopped half-way is part of the conversation too; a question without any is not.
        if parts:
            conversation.record(question, "".join(parts))
            print_line()


def _command(session: _Session, conversation: Conversation, line: str) -> bool:
    """Obeys a line that begins with a slash; False to leave."""
    name, _, argument = line[1:].partition(" ")
    argument = argument.strip()
    match name:
        case "adapter":
            if argument:
                session.call(lambda client: _get_adapter(client, argument))
            conversation.adapter = argument
        case "adapters":
            for adapter in session.call(_list_adapters):
                print_line(adapter)
        case "system":
            conversation.system = argument
        case "clear":
            conversation.turns.clear()
        case "help":
            print_line(HELP)
        case "quit" | "exit":
            return False
        case _:
            print_error(f"there is no /{name}; /help lists the commands")
    return True


async def _get_adapter(client: "Client", name: str) -> None:
    from lorikeet.v1 import adapters_pb2

    # A pinned digest has no entry of its own: the first question shows whether it is known.
    if not name.startswith("b3:"):
        request = adapters_pb2.GetAdapterRequest(name=name)
        await client.adapters.GetAdapter(request, timeout=client.connection.deadline)


async def _list_adapters(client: "Client") -> list[str]:
    from cli.client import all_adapters

    return [adapter.name async for adapter in all_adapters(client)]


def _read(conversation: Conversation, *, interactive: bool) -> str | None:
    """The next line; None at the end of the input."""
    if not interactive:
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input(f"{conversation.adapter or 'base'}> ").strip()
    except EOFError:
        print_line()
        return None
    except KeyboardInterrupt:
        print_line()
        return ""


def _use_history() -> None:
    """Line editing, with what was typed in earlier conversations."""
    import atexit

    try:
        import readline
    except ImportError:
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    file = state / "lorikeet" / "chat_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
        readline.read_history_file(file)
    except OSError:
        return
    readline.set_history_length(1000)

    def keep() -> None:
        with contextlib.suppress(OSError):
            readline.write_history_file(file)

    atexit.register(keep)
