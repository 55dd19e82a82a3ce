"""A picture of one run: how waiting times are distributed, and throughput over time."""

from collections.abc import Sequence
from pathlib import Path

from cli.benchmark.load import Outcome
from cli.errors import usage_error


def check_plot(path: Path) -> None:
    """Before a run: can the picture be drawn? Raises CliError."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise usage_error("--plot needs matplotlib: pip install 'lorikeet[bench]'") from error
    known = FigureCanvasBase.filetypes
    if path.suffix.removeprefix(".") not in known:
        raise usage_error(f"--plot {path}: the name must end in one of .{', .'.join(sorted(known))}")


def draw(outcomes: Sequence[Outcome], path: Path, *, title: str) -> None:
    """Write a picture of at least one answered request."""
    from matplotlib.figure import Figure

    done = [outcome for outcome in outcomes if not outcome.error]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    first, gaps, throughput = figure.subplots(1, 3)
    first.ecdf([outcome.ttft * 1e3 for outcome in done])
    first.set(title="time to first token", xlabel="ms", ylabel="share of requests")
    between = [gap * 1e3 for outcome in done for gap in outcome.gaps]
    if between:
        gaps.ecdf(between)
        gaps.set_xscale("log")
    gaps.set(title="inter-token time", xlabel="ms", ylabel="share of gaps")
    seconds, rates = _throughput(done)
    throughput.step(seconds, rates, where="post")
    throughput.set(title="throughput", xlabel="s", ylabel="tokens/s", ylim=(0, None))
    for axes in (first, gaps, throughput):
        axes.grid(alpha=0.3)
    figure.savefig(path)


def _throughput(done: Sequence[Outcome], bins: int = 50) -> tuple[list[float], list[float]]:
    """Tokens a second in equal parts of the run; a message's tokens count when it comes."""
    end = max(outcome.messages[-1] for outcome in done)
    width = end / bins
    counts = [0.0] * (bins + 1)
    for outcome in done:
        tokens = outcome.tokens / len(outcome.messages)
        for moment in outcome.messages:
            counts[min(int(moment / width), bins - 1)] += tokens
    counts[bins] = counts[bins - 1]
    return [width * index for index in range(bins + 1)], [count / width for count in counts]
