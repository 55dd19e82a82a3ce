"""`lorikeet generate`: one prompt, streamed to stdout."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.options import AsJson, ConfigFile, Target, Timeout, connection
from cli.errors import CliError, usage_error
from cli.output import print_error, print_json, print_line, printable, reporting, to_json, write

if TYPE_CHECKING:
    from lorikeet.v1 import generation_pb2 as pb

SAMPLING = "Sampling"


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - or nothing reads it from stdin.", show_default=False)
    ] = None,
    adapter: Annotated[
        str,
        typer.Option(
            "--adapter", "-a", metavar="NAME", help="Adapter by name, or b3:DIGEST; none for the base."
        ),
    ] = "",
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's chat message.")] = False,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="System message before it; implies --chat.")
    ] = "",
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text appears; repeatable.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, metavar="N", help="Completions of the same prompt.")] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, metavar="K", help="Log probabilities with K alternatives each; needs --json."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Most tokens to generate.", rich_help_panel=SAMPLING),
    ] = None,
    min_tokens: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="No end before so many.", rich_help_panel=SAMPLING)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="0 is greedy.", rich_help_panel=SAMPLING)
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Only the N likeliest; 0 for all.", rich_help_panel=SAMPLING),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Only the likeliest that reach this probability together.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Only those this likely, beside the likeliest.", rich_help_panel=SAMPLING
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Above 1: less of what prompt and answer hold.", rich_help_panel=SAMPLING
        ),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        typer.Option(metavar="X", help="Above 0: less of what the answer holds.", rich_help_panel=SAMPLING),
    ] = None,
    frequency_penalty: Annotated[
        float | None,
        typer.Option(metavar="X", help="Above 0: less of what it holds often.", rich_help_panel=SAMPLING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Same seed, same tokens.", rich_help_panel=SAMPLING)
    ] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Go on past end-of-sequence tokens.", rich_help_panel=SAMPLING),
    ] = False,
    as_json: AsJson = False,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Generate text, streamed as it comes.

    Unset sampling options take the model's own defaults.

    [bold]Examples[/bold]

        lorikeet generate "Once upon a time" --max-tokens 40

        lorikeet generate --chat -a alice "What is the password?" --temperature 0

        git diff | lorikeet generate - --system "Describe this change."
    """
    with reporting(as_json=as_json):
        from cli import client
        from cli.requests import Sampling, describe, fill, stream

        if logprobs is not None and not as_json:
            raise usage_error("--logprobs needs --json: there is no other place to print them")
        sampling = Sampling(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            ignore_eos=ignore_eos or None,
        )
        request = _request(_prompt_text(prompt), system=system, chat=chat)
        request.sampling.CopyFrom(sampling.encode())
        request.stop.extend(stop or ())
        fill(request, adapter=adapter, n=n, logprobs=logprobs)

        printer = _JsonPrinter() if as_json else _TextPrinter(n)
        where = connection(target, timeout, config)
        try:
            summary = client.run(
                where, lambda opened: stream(opened, request, printer.add), is_for_reader=True
            )
        except CliError:
            printer.cut()
            raise
        printer.finish()
        if not as_json and sys.stderr.isatty():
            print_error(describe(summary))


def _request(text: str, *, system: str, chat: bool) -> "pb.GenerateRequest":
    from cli.requests import chat_prompt
    from lorikeet.v1 import generation_pb2 as pb

    if not chat and not system:
        return pb.GenerateRequest(text=text)
    messages = [("system", system)] if system else []
    return pb.GenerateRequest(chat=chat_prompt([*messages, ("user", text)]))


def _prompt_text(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise usage_error('no prompt: give one, as in `lorikeet generate "Hello"`, or pipe it in')
    return sys.stdin.read().removesuffix("\n")


class _JsonPrinter:
    """Each response as it comes."""

    def add(self, response: "pb.GenerateResponse") -> None:
        print_json(to_json(response, defaults=False))

    def cut(self) -> None:
        pass

    def finish(self) -> None:
        pass


class _TextPrinter:
    """Text as it comes; several completions one after the other, at the end."""

    def __init__(self, completions: int) -> None:
        self._completions = completions
        self._texts = [""] * completions

    def add(self, response: "pb.GenerateResponse") -> None:
        self._texts[response.index] += response.text
        if self._completions == 1:
            write(printable(response.text))

    def cut(self) -> None:
        """There will be no more: what is said of it begins a line of its own."""
        if self._completions == 1 and self._texts[0]:
            print_line()

    def finish(self) -> None:
        if self._completions == 1:
            if not self._texts[0].endswith("\n"):
                print_line()
            return
        for number, text in enumerate(self._texts, start=1):
            print_line(f"--- {number} ---")
            print_line(printable(text))
