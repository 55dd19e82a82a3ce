"""`lorikeet bench`: how fast a running server is."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands.options import AsJson, ConfigFile, Target, Timeout, connection
from cli.errors import CliError, usage_error, why
from cli.output import print_error, print_json, print_line, print_table, reporting

if TYPE_CHECKING:
    from cli.benchmark.load import Outcome
    from cli.benchmark.workload import Planned, Traffic
    from cli.client import Client
    from lorikeet.v1 import generation_pb2 as pb

app = typer.Typer(help="Measure a running server.", no_args_is_help=True, rich_markup_mode="rich")

LOAD, PROMPTS, RESULTS = "Load", "Prompts", "Results"
# A client that takes more of its core than this may be what is slow.
_BUSY_CLIENT = 0.9


@app.callback()
def bench() -> None:
    """Measure a running server."""


@app.command()
def serve(
    requests: Annotated[
        int, typer.Option("-n", "--requests", min=1, help="How many to send.", rich_help_panel=LOAD)
    ] = 200,
    concurrency: Annotated[
        int, typer.Option("-c", min=1, help="At most so many in flight.", rich_help_panel=LOAD)
    ] = 32,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            metavar="R",
            help="Poisson arrivals a second; else one follows another.",
            rich_help_panel=LOAD,
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "-a", "--adapter", metavar="NAME", help="Ask for these; * and ? match.", rich_help_panel=LOAD
        ),
    ] = None,
    zipf: Annotated[
        float,
        typer.Option(
            min=0, max=50, metavar="S", help="Skew of their popularity; 0: none.", rich_help_panel=LOAD
        ),
    ] = 1.0,
    warmup: Annotated[
        int, typer.Option(min=0, metavar="N", help="Sent before, not counted.", rich_help_panel=LOAD)
    ] = 8,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A text a line, or .jsonl; else random.", rich_help_panel=PROMPTS),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Length of a random prompt.", rich_help_panel=PROMPTS)
    ] = 128,
    output_tokens: Annotated[
        int,
        typer.Option(
            min=1, max=(1 << 32) - 1, metavar="N", help="To generate for each.", rich_help_panel=PROMPTS
        ),
    ] = 128,
    until_eos: Annotated[
        bool, typer.Option("--until-eos", help="End where the model does.", rich_help_panel=PROMPTS)
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="0 is greedy.", rich_help_panel=PROMPTS)
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same requests.", rich_help_panel=PROMPTS)] = 0,
    goal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=MS",
            help="ttft, tpot or e2e; goodput counts who meets all.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All results as JSON.", rich_help_panel=RESULTS)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture: .png, .svg, ...", rich_help_panel=RESULTS)
    ] = None,
    as_json: AsJson = False,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Send generate calls to a running server and measure what its clients see.

    TTFT is the time to the first token, TPOT the mean per token after it, ITL the time between messages.
    With --rate, times count from when a request was due.

    [bold]Examples[/bold]

        lorikeet bench serve -c 32 -a 'user-*' --output-tokens 256

        lorikeet bench serve --rate 8 --prompts chats.jsonl --goal ttft=200 --goal tpot=30 --plot run.png
    """
    with reporting(as_json=as_json):
        from cli import client
        from cli.benchmark import plot as plots
        from cli.benchmark import report, workload

        goals = report.parse_goals(goal or ())
        if plot is not None:
            plots.check_plot(plot)
        _check_places(out, plot)

        traffic = workload.Traffic(
            requests=requests,
            rate=rate,
            output_tokens=output_tokens,
            zipf=zipf,
            ignore_eos=not until_eos,
            temperature=temperature,
            seed=seed,
        )

        async def call(opened: "Client") -> "tuple[pb.GetModelResponse, list[Outcome], float]":
            model, names = await _look(opened, adapter or [])
            if prompts is None and prompt_tokens >= model.context_length:
                most = model.context_length - 1
                raise usage_error(f"--prompt-tokens {prompt_tokens}: {model.name} takes {most} at most")

            def planned(part: "Traffic") -> "list[Planned]":
                if prompts is not None:
                    texts = workload.prompts_of(prompts)
                else:
                    texts = workload.random_prompts(prompt_tokens, model.vocab_size, part.seed)
                return workload.plan(part, texts, names)

            before = replace(traffic, requests=warmup, seed=seed + 1)
            await _send(opened, planned(before), concurrency, "warming up")
            begun, spent = time.perf_counter(), time.process_time()
            outcomes = await _send(opened, planned(traffic), concurrency, "measuring")
            return model, outcomes, (time.process_time() - spent) / (time.perf_counter() - begun)

        model, outcomes, busy = client.run(connection(target, timeout, config), call)
        summary = report.summarise(outcomes, goals)
        summary["client_busy"] = round(busy, 3)
        result: dict[str, Any] = {
            "model": model.name,
            "base_digest": model.base_digest,
            "version": model.version,
            "traffic": {"concurrency": concurrency, **asdict(traffic)},
            **summary,
        }
        if out is not None:
            _write(out, {**result, "each": report.each(outcomes)})
        if not summary["completed"]:
            errors = ", ".join(summary["failed"])
            raise CliError(f"none of {requests} requests was answered: {errors}")
        if plot is not None:
            plots.draw(outcomes, plot, title=f"{model.name}: {report.lines(summary)[1]}")
        if as_json:
            print_json(result)
            return
        print_line("\n".join(report.lines(summary)))
        print_table(*report.table(summary))
        if busy > _BUSY_CLIENT:
            print_error(
                f"note: this client was busy for {busy:.0%} of the time: it may be slower than the server"
            )


def _check_places(*paths: Path | None) -> None:
    """Before a run, which may take hours."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise usage_error(f"{path} cannot be written: there is no folder {path.parent}")


async def _look(opened: "Client", patterns: list[str]) -> "tuple[pb.GetModelResponse, list[str]]":
    """The model, and the adapters that patterns select."""
    from cli.benchmark.workload import matching
    from cli.client import all_adapters
    from lorikeet.v1 import generation_pb2 as pb

    deadline = opened.connection.deadline
    model = await opened.generation.GetModel(pb.GetModelRequest(), timeout=deadline)
    if not any(mark in pattern for pattern in patterns for mark in "*?["):
        return model, patterns
    return model, matching(patterns, [each.name async for each in all_adapters(opened)])


async def _send(opened: "Client", planned: "list[Planned]", concurrency: int, doing: str) -> "list[Outcome]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cli.benchmark.load import send

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:
        task = display.add_task(doing, total=len(planned))
        return await send(opened, planned, concurrency=concurrency, on_end=lambda: display.advance(task))


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise usage_error(f"{path} cannot be written: {why(error)}") from error
