"""What single steps cost on a GPU: prompts, prompts among decoding rows, every kind of sampling.

    PYTHONPATH=.:protos python -m bench.steps --model-shape qwen3-8b --out steps.json

The runner is given plans made by hand, without a scheduler. Weights and adapters are random. A step's time
is the median over steps launched while the one before runs, as the engine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.engine import SHAPES
from bench.versions import versions
from executor.control.loader import UNIT_BYTES
from executor.control.plan import BASE_SLOT, LAST_SAMPLED, RowInstall, StepPlan
from executor.control.request import SamplingParams, no_ids
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from executor.model.parameters import MlpParameters
from executor.model.slots import AdapterPool
from executor.runner import RunnerConfig, TorchRunner
from tests.support.engine_rig import PAGE_SIZE, Pack, bring, random_pack

GREEDY = SamplingParams(max_tokens=2, ignore_eos=True)
WARM = replace(GREEDY, temperature=0.9, seed=7)
SAMPLINGS = {
    "greedy": GREEDY,
    "temperature": WARM,
    "top-k 40": replace(WARM, top_k=40),
    "top-p 0.9": replace(WARM, top_p=0.9),
    "top-k 40, top-p 0.9": replace(WARM, top_k=40, top_p=0.9),
    "min-p 0.05": replace(WARM, min_p=0.05),
    "penalties": replace(
        GREEDY, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1, min_tokens=1
    ),
    "bias": replace(GREEDY, logit_bias=((5, 1.0), (6, -1.0)), stop_token_ids=(3,), min_tokens=2),
    "5 logprobs": replace(GREEDY, logprobs=5),
}
CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """`count` rows of `tokens` tokens each, after `start` that are in the cache."""

    count: int
    tokens: int
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of the report, milliseconds: from step to step, and the host's share of it."""

    name: str
    tokens: int
    step_ms: float
    launch_ms: float
    tflops: float


class Bench:
    """One model and one runner, with `adapters` adapters in its slots."""

    def __init__(
        self,
        shape: dict[str, Any],
        *,
        device: torch.device,
        rows: int,
        adapters: int,
        rank: int,
        deterministic: bool = False,
    ) -> None:
        self.model = model = ModelConfig.parse(shape, {})
        self.device, self.rows = device, rows
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.parameters = dummy_parameters(model, dtype=dtype, device=device)
        pack = random_pack(model, rank=rank, dtype=dtype) if adapters else None
        units = pack.manifest.total_bytes // UNIT_BYTES if pack else 0
        self.pool = AdapterPool(
            model,
            units=units,
            slots=adapters,
            dtype=dtype,
            device=device,
            parameters=self.parameters,
            deterministic=deterministic,
        )
        if pack:
            self._show(pack, adapters)
        self.slots = adapters
        self.runner = TorchRunner(
            model,
            self.parameters,
            pool=self.pool,
            config=RunnerConfig(
                max_rows=rows,
                pages=rows * CONTEXT // PAGE_SIZE,
                page_size=PAGE_SIZE,
                max_context=CONTEXT,
                deterministic=deterministic,
            ),
        )
        self._step = 0
        # Row r has pages from r * columns on, for good.
        columns = CONTEXT // PAGE_SIZE
        self._pages = (
            np.repeat(np.arange(rows, dtype=np.int32), columns),
            np.tile(np.arange(columns, dtype=np.int32), rows),
            np.arange(rows * columns, dtype=np.int32),
        )

    def _show(self, pack: Pack, adapters: int) -> None:
        """All slots show the same numbers."""
        for slot in range(adapters):
            row = bring(self.pool, slot, 0, pack)
            self.pool.install_slot(slot, row)

    def plan(self, spans: Sequence[Rows], sampling: SamplingParams | None, *, adapted: bool) -> StepPlan:
        """With `sampling`, rows are installed anew."""
        lengths = np.concatenate([np.full(rows.count, rows.tokens) for rows in spans])
        starts = np.concatenate([np.full(rows.count, rows.start) for rows in spans])
        count, splits = len(lengths), np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        ids = np.random.default_rng(0).integers(0, self.model.vocab_size, splits[-1]).astype(np.int32)
        decoding = np.repeat((lengths == 1) & (starts > 0), lengths)
        slots = np.arange(count) % self.slots if adapted else np.full(count, BASE_SLOT)
        none = np.empty(0, dtype=np.int32)
        pages = self._pages if sampling else (none, none, none)
        installs = () if sampling is None else tuple(self._install(row, sampling) for row in range(count))
        self._step += 1
        return StepPlan(
            step=self._step,
            installs=installs,
            rows=np.arange(count, dtype=np.int32),
            query_splits=splits,
            input_ids=np.where(decoding, LAST_SAMPLED, ids).astype(np.int32),
            start_positions=starts.astype(np.int32),
            slots=slots.astype(np.int32),
            samples=np.ones(count, dtype=np.bool_),
            page_rows=pages[0],
            page_columns=pages[1],
            page_ids=pages[2],
        )

    @staticmethod
    def _install(row: int, sampling: SamplingParams) -> RowInstall:
        prompt = np.arange(200, dtype=np.int32)
        return RowInstall(row=row, sampling=sampling, prompt_ids=prompt, emitted_ids=no_ids())

    def time(
        self,
        name: str,
        spans: Sequence[Rows],
        *,
        sampling: SamplingParams = GREEDY,
        adapted: bool = False,
        steps: int = 8,
    ) -> Step:
        """The same step again and again."""
        runner = self.runner
        pending = runner.launch(self.plan(spans, sampling, adapted=adapted))
        ends, launches = [], []
        for _ in range(steps + 3):
            plan = self.plan(spans, None, adapted=adapted)
            begun = time.perf_counter()
            launched = runner.launch(plan)
            launches.append(time.perf_counter() - begun)
            runner.collect(pending)
            ends.append(time.perf_counter())
            pending = launched
        runner.collect(pending)
        seconds = float(np.median(np.diff(ends)[2:]))
        return Step(
            name=name,
            tokens=sum(rows.count * rows.tokens for rows in spans),
            step_ms=round(seconds * 1e3, 3),
            launch_ms=round(statistics.median(launches[3:]) * 1e3, 3),
            tflops=round(self.flops(spans) / seconds / 1e12, 1),
        )

    def flops(self, spans: Sequence[Rows]) -> float:
        """Of the model: products of all tokens, attention to what each sees, logits of one token a row."""
        model, total = self.model, 0.0
        for layer in self.parameters.layers:
            assert isinstance(layer.mlp, MlpParameters), "experts are not counted here"
            linears = (layer.qkv, layer.o, layer.mlp.gate_up, layer.mlp.down)
            per_token = sum(2 * linear.weight.numel() for linear in linears)
            for rows in spans:
                seen = rows.tokens * (rows.start + (rows.tokens + 1) / 2)
                attended = 4 * model.heads * model.head_dim * seen
                total += rows.count * (rows.tokens * per_token + attended)
        return total + sum(2 * self.parameters.head.numel() * rows.count for rows in spans)


def run(bench: Bench, options: argparse.Namespace) -> list[Step]:
    rows, steps = bench.rows, []

    def add(name: str, spans: Sequence[Rows], **more: Any) -> None:
        steps.append(bench.time(name, spans, **more))
        print(steps[-1], flush=True)

    for adapted in (False, True) if bench.slots else (False,):
        suffix = f", rank {options.rank} x {bench.slots}" if adapted else ""
        for count in (1, 8):
            add(f"prompts {count} x 1024{suffix}", [Rows(count=count, tokens=1024)], adapted=adapted)
        decodes = Rows(count=rows - 1, tokens=1, start=256)
        for tokens in (16, 128, 512, 1500):
            spans = [decodes, Rows(count=1, tokens=tokens)]
            add(f"{rows - 1} decode + {tokens}{suffix}", spans, adapted=adapted)
        add(f"{rows} decode{suffix}", [replace(decodes, count=rows)], adapted=adapted, steps=20)
    for name, sampling in SAMPLINGS.items():
        add(f"{rows} decode, {name}", [Rows(count=rows, tokens=1, start=256)], sampling=sampling, steps=20)
    return steps


def profile(bench: Bench, name: str, spans: Sequence[Rows], sampling: SamplingParams = GREEDY) -> str:
    """Which kernels take the time of three steps."""
    bench.time(name, spans, sampling=sampling, steps=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        bench.time(name, spans, sampling=sampling, steps=1)
    table = profiler.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=16, max_name_column_width=60
    )
    lines = [line for line in table.splitlines() if not line.startswith("-")]
    return "\n".join([f"profile: {name}", *lines])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-shape", choices=SHAPES, default="qwen3-8b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=int, default=128, help="of a batch")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=32, help="0 leaves adapters out")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--profile", action="store_true", help="say which kernels take the time")
    parser.add_argument("--check-waits", action="store_true", help="fail where the host waits but for ids")
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    return parser.parse_args()


def main() -> None:
    options = parse()
    shape = SHAPES[options.model_shape] | ({"num_hidden_layers": options.layers} if options.layers else {})
    device = torch.device(options.device)
    bench = Bench(
        shape,
        device=device,
        rows=options.rows,
        adapters=options.adapters,
        rank=options.rank,
        deterministic=options.deterministic,
    )
    with warnings.catch_warnings(record=True) as waits:
        if options.check_waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        steps = run(bench, options)
    if options.check_waits:
        torch.cuda.set_sync_debug_mode("default")
    profiles = []
    if options.profile:
        decodes = Rows(count=options.rows - 1, tokens=1, start=256)
        profiles = [
            profile(bench, "1 x 1024", [Rows(count=1, tokens=1024)]),
            profile(bench, "8 x 1024", [Rows(count=8, tokens=1024)]),
            profile(bench, "decode + 128", [decodes, Rows(count=1, tokens=128)]),
            profile(bench, "top-k, top-p", [decodes], SAMPLINGS["top-k 40, top-p 0.9"]),
            profile(bench, "penalties", [decodes], SAMPLINGS["penalties"]),
        ]
        print("\n".join(profiles))
    report = versions() | {"steps": [asdict(step) for step in steps], "profiles": profiles}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))
    for place in sorted({f"{wait.filename}:{wait.lineno} {wait.message}" for wait in waits}):
        print("the host waits:", place)
    print(f"{'step':<38} {'tokens':>6} {'ms':>8} {'launch ms':>10} {'TFLOP/s':>8}")
    for step in steps:
        print(
            f"{step.name:<38} {step.tokens:>6} {step.step_ms:>8} {step.launch_ms:>10} {step.tflops:>8}",
        )


if __name__ == "__main__":
    main()
