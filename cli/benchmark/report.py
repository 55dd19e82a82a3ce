"""What many outcomes amount to. Times are milliseconds."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cli.benchmark.load import Outcome
from cli.errors import usage_error
from cli.output import counted

MEASURES = ("ttft", "tpot", "e2e")
"""What a goal may bound, by their names in the field: time to first token, per output token, end to end."""

PERCENTILES = (50, 90, 99)


def parse_goals(goals: Sequence[str]) -> dict[str, float]:
    """From `ttft=200`. Raises CliError for anything else."""
    parsed: dict[str, float] = {}
    for goal in goals:
        name, _, value = goal.partition("=")
        try:
            parsed[name] = float(value)
        except ValueError:
            parsed[name] = 0.0
        if name not in MEASURES or not parsed[name] > 0:
            raise usage_error(f"--goal {goal!r}: write {' or '.join(f'{m}=MS' for m in MEASURES)}")
    return parsed


def summarise(outcomes: Sequence[Outcome], goals: Mapping[str, float]) -> dict[str, Any]:
    """Rates are over the time from the first arrival to the last token; goodput is the rate of requests that
    met every goal.
    """
    done = [outcome for outcome in outcomes if not outcome.error]
    seconds = 0.0
    if done:
        seconds = max(outcome.messages[-1] for outcome in done) - min(outcome.begun for outcome in outcomes)
    tokens, prompt_tokens = sum(o.tokens for o in done), sum(o.prompt_tokens for o in done)
    summary: dict[str, Any] = {
        "requests": len(outcomes),
        "completed": len(done),
        "failed": dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        "seconds": round(seconds, 3),
        "requests_per_second": _rate(len(done), seconds),
        "output_tokens": tokens,
        "output_tokens_per_second": _rate(tokens, seconds),
        "prompt_tokens": prompt_tokens,
        "cached_prompt_tokens": sum(outcome.cached_tokens for outcome in done),
        "tokens_per_message": round(tokens / max(1, sum(len(o.messages) for o in done)), 2),
        "adapters": len({outcome.adapter for outcome in done if outcome.adapter}),
        "ttft_ms": _spread([outcome.ttft for outcome in done]),
        "tpot_ms": _spread([tpot for outcome in done if (tpot := outcome.tpot) is not None]),
        "itl_ms": _spread([gap for outcome in done for gap in outcome.gaps]),
        "e2e_ms": _spread([outcome.e2e for outcome in done]),
        "adapter_wait_ms": _spread([outcome.adapter_wait for outcome in done if outcome.adapter]),
    }
    if goals:
        good = sum(_meets(outcome, goals) for outcome in done)
        summary["goals_ms"] = dict(goals)
        summary["good_requests"] = good
        summary["goodput_requests_per_second"] = _rate(good, seconds)
    return summary


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary for people."""
    failed = ", ".join(f"{count} x {error}" for error, count in summary["failed"].items())
    text = [
        f"{summary['completed']} of {summary['requests']} requests in {summary['seconds']:.1f} s"
        + (f"; failed: {failed}" if failed else ""),
        f"{summary['requests_per_second']:g} requests/s, {summary['output_tokens_per_second']:g} tokens/s, "
        f"{summary['prompt_tokens']} prompt tokens ({summary['cached_prompt_tokens']} cached), "
        f"{counted(summary['adapters'], 'adapter')}",
    ]
    if "goals_ms" in summary:
        goals = ", ".join(f"{name} <= {value:g} ms" for name, value in summary["goals_ms"].items())
        text.append(f"goodput: {summary['goodput_requests_per_second']:g} requests/s with {goals}")
    return text


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the times."""
    columns = ("mean", *(f"p{percentile}" for percentile in PERCENTILES), "max")
    rows = [
        [label, *(f"{summary[key][column]:.1f}" for column in columns)]
        for label, key in (
            ("TTFT", "ttft_ms"),
            ("TPOT", "tpot_ms"),
            ("ITL", "itl_ms"),
            ("E2E", "e2e_ms"),
            ("ADAPTER WAIT", "adapter_wait_ms"),
        )
        if summary[key]
    ]
    return ["ms", *(column.upper() for column in columns)], rows


def each(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One small record a request."""
    return [
        {"adapter": outcome.adapter, "begun_s": round(outcome.begun, 4), "error": outcome.error}
        if outcome.error
        else {
            "adapter": outcome.adapter,
            "begun_s": round(outcome.begun, 4),
            "tokens": outcome.tokens,
            "ttft_ms": round(outcome.ttft * 1e3, 3),
            "e2e_ms": round(outcome.e2e * 1e3, 3),
        }
        for outcome in outcomes
    ]


def _meets(outcome: Outcome, goals: Mapping[str, float]) -> bool:
    measured = {"ttft": outcome.ttft, "tpot": outcome.tpot or 0.0, "e2e": outcome.e2e}
    return all(measured[name] * 1e3 <= bound for name, bound in goals.items())


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles and maximum; empty without values."""
    if not seconds:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    values = {"mean": statistics.fmean(seconds)}
    values |= {f"p{percentile}": cuts[percentile - 1] for percentile in PERCENTILES}
    values["max"] = max(seconds)
    return {name: round(value * 1e3, 3) for name, value in values.items()}
