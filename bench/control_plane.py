"""How long the executor's control plane takes for a step, on one core, with a runner that computes nothing.

    python -m bench.control_plane [--cpu-time] [--out FILE]

"plan + advance" times those two calls (and `add`, where requests arrive); "loop" is a whole turn of the
engine but for the runner: mailbox, adapter loader, timings and publishing too. Page allocation, eviction,
stop checks and fairness among 16 adapters and the base are included. Before any number is reported, the
same traffic passes a runner that checks every token against the KV pages it should come from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from executor.arithmetic.loader import ArithmeticLoader
from executor.arithmetic.runner import ArithmeticRunner, PendingStep
from executor.control.config import SchedulerConfig
from executor.control.engine import Engine, InFlight
from executor.control.mailbox import Mailbox, Submit
from executor.control.outputs import Outputs
from executor.control.plan import StepPlan, StepResult
from executor.control.prefix_tree import NO_PAGE, PrefixTree
from executor.control.request import Int32Array, Namespace, Request, SamplingParams, no_ids
from executor.control.scheduler import Scheduler

_ADAPTERS = [f"{number:064x}" for number in range(16)]
_DIGESTS = ["", *_ADAPTERS]
_FIRST_ID, _VOCAB = 16, 150_000
_PAGE_SIZE = 16
_TARGETS = {128: 300.0, 512: 1200.0}
_MATCH_TARGET = 1000.0

clock = time.perf_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the report; microseconds."""

    name: str
    rows: int
    mean: float
    p50: float
    p99: float
    target: float | None = None

    @staticmethod
    def of(name: str, rows: int, seconds: list[float], target: float | None = None) -> Line:
        times = np.array(seconds) * 1e6
        p50, p99 = np.percentile(times, [50, 99])
        return Line(
            name=name,
            rows=rows,
            mean=round(float(times.mean()), 1),
            p50=round(float(p50), 1),
            p99=round(float(p99), 1),
            target=target,
        )


class TimedScheduler(Scheduler):
    """Adds up the time spent in the three calls whose cost is asked for."""

    spent = 0.0

    def add(self, request: Request) -> None:
        begun = clock()
        super().add(request)
        self.spent += clock() - begun

    def plan(self) -> StepPlan | None:
        begun = clock()
        plan = super().plan()
        self.spent += clock() - begun
        return plan

    def advance(self, result: StepResult) -> Outputs:
        begun = clock()
        outputs = super().advance(result)
        self.spent += clock() - begun
        return outputs


class TimedRunner(ArithmeticRunner):
    """Adds up the runner's own time, to be taken off the loop's."""

    spent = 0.0

    def launch(self, plan: StepPlan) -> PendingStep:
        begun = clock()
        pending = super().launch(plan)
        self.spent += clock() - begun
        return pending

    def collect(self, pending: PendingStep) -> StepResult:
        begun = clock()
        result = super().collect(pending)
        self.spent += clock() - begun
        return result


class Load:
    """An engine that is kept at `rows` running requests; each ends after `max_tokens` and is followed by a
    new one.
    """

    def __init__(self, rows: int, *, max_tokens: int, pages_per_row: int, check: bool) -> None:
        self._random = np.random.default_rng(0)
        self._shared = self._ids(32)
        self._rows = rows
        self._max_tokens = max_tokens
        self._made = 0
        self._in_flight: InFlight[PendingStep] | None = None
        self.ended = 0
        self.tokens = 0
        config = SchedulerConfig(
            context=4096,
            pages=rows * pages_per_row,
            page_size=_PAGE_SIZE,
            max_running=rows,
            max_step_tokens=8192,
            adapter_slots=len(_ADAPTERS),
            pool_units=len(_ADAPTERS) * 100,
            eos_token_ids=(1, 2, 3),
        )
        loader = ArithmeticLoader(
            slots=len(_ADAPTERS), units=config.pool_units, packs=dict.fromkeys(_ADAPTERS, 100)
        )
        self.scheduler = TimedScheduler(config)
        self.runner = TimedRunner(
            rows=rows,
            columns=config.longest // _PAGE_SIZE,
            pages=config.pages,
            page_size=_PAGE_SIZE,
            vocab_size=_VOCAB,
            first_id=_FIRST_ID,
            loader=loader if check else None,
            check=check,
        )
        self._mailbox = Mailbox()
        self._engine: Engine[PendingStep] = Engine(
            scheduler=self.scheduler,
            runner=self.runner,
            loader=loader,
            mailbox=self._mailbox,
            publish=self._count,
        )
        for _ in range(rows):
            self._submit(int(self._random.integers(1, max_tokens + 1)) if max_tokens < 100 else max_tokens)
        while self.scheduler.statistics().waiting or not self.tokens:
            self.step()

    def step(self) -> tuple[float, float]:
        """One turn; returns the seconds of plan + advance (+ add), and of the loop without the runner."""
        self.scheduler.spent = self.runner.spent = 0.0
        ended = self.ended
        begun = clock()
        self._in_flight = self._engine.step(self._in_flight)
        loop = clock() - begun - self.runner.spent
        for _ in range(self.ended - ended):
            self._submit(self._max_tokens)
        return self.scheduler.spent, loop

    def _submit(self, max_tokens: int) -> None:
        """A prompt of 49 to 80 tokens, 32 of them common to all. Stop ids are watched for and never come."""
        self._made += 1
        request = Request(
            client=1,
            index=self._made,
            prompt_ids=np.concatenate([self._shared, self._ids(int(self._random.integers(17, 49)))]),
            emitted_ids=no_ids(),
            digest=_DIGESTS[self._made % len(_DIGESTS)],
            sampling=SamplingParams(max_tokens=max_tokens, stop_token_ids=(4, 5)),
        )
        self._mailbox.post([Submit(request)])

    def _ids(self, count: int) -> Int32Array:
        return self._random.integers(_FIRST_ID, _VOCAB, count, dtype=np.int32)

    def _count(self, outputs: Outputs) -> None:
        self.ended += int(np.count_nonzero(outputs.finish_reasons))
        self.tokens += len(outputs.token_ids)


def verify() -> None:
    """Raises AssertionError if the traffic that is measured goes wrong anywhere."""
    for max_tokens, pages_per_row in ((1000, 40), (20, 8)):
        load = Load(32, max_tokens=max_tokens, pages_per_row=pages_per_row, check=True)
        for _ in range(100):
            load.step()
            load.scheduler.check_integrity()


def measure(name: str, rows: int, steps: int, *, max_tokens: int, pages_per_row: int) -> list[Line]:
    load = Load(rows, max_tokens=max_tokens, pages_per_row=pages_per_row, check=False)
    for _ in range(60):
        load.step()
    tokens = load.tokens
    times = [load.step() for _ in range(steps)]
    assert load.tokens - tokens > 0.85 * rows * steps, "rows stood idle: the load is not what it claims to be"
    target = _TARGETS.get(rows) if name == "steady decode" else None
    return [
        Line.of(f"{name}: plan + advance", rows, [part[0] for part in times], target),
        Line.of(f"{name}: loop", rows, [part[1] for part in times]),
    ]


def measure_match(prompt: int = 8192, repeats: int = 300) -> Line:
    """Finds a whole prompt in a tree that holds 20 prompts of two namespaces."""
    pages = prompt // _PAGE_SIZE
    tree = PrefixTree(20 * pages, _PAGE_SIZE)
    random = np.random.default_rng(1)
    prompts: list[tuple[Namespace, Int32Array]] = []
    for number in range(20):
        ids = random.integers(0, _VOCAB, prompt, dtype=np.int32)
        ids[: prompt // 2] = prompts[0][1][: prompt // 2] if prompts else ids[: prompt // 2]
        namespace = Namespace(_DIGESTS[number % 2], "")
        kept = tree.insert(namespace, NO_PAGE, ids, list(range(number * pages, (number + 1) * pages)))
        assert len(kept) == pages
        prompts.append((namespace, ids))
    times: list[float] = []
    for turn in range(repeats):
        namespace, ids = prompts[turn % len(prompts)]
        begun = clock()
        found = tree.match(namespace, ids, pages)
        times.append(clock() - begun)
        assert len(found) == pages
    return Line.of("prefix match of 8,192 tokens", 1, times, _MATCH_TARGET)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=900, help="steps measured for each line (default 900)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="the thread's time, for a machine that is shared"
    )
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    global clock
    if options.cpu_time:
        clock = time.thread_time

    verify()
    lines: list[Line] = []
    for rows in (32, 128, 512):
        lines += measure("steady decode", rows, options.steps, max_tokens=4000, pages_per_row=80)
        lines += measure("5 % arrivals a step", rows, options.steps, max_tokens=20, pages_per_row=8)
    lines.append(measure_match())

    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {versions}"
    unit = "us of CPU time" if options.cpu_time else "us"
    print(f"{machine}; {unit}\n{'':44}{'rows':>6}{'mean':>10}{'p50':>10}{'p99':>10}{'target':>10}")
    for line in lines:
        target = "" if line.target is None else f"{line.target:.0f}"
        print(f"{line.name:44}{line.rows:6}{line.mean:10.1f}{line.p50:10.1f}{line.p99:10.1f}{target:>10}")
    if options.out:
        record = {"machine": machine, "unit": unit, "lines": [asdict(line) for line in lines]}
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
