"""How fast the engine decodes and prefills on a GPU by itself, with and without adapters.

    PYTHONPATH=.:protos python -m bench.engine --model-shape qwen3-8b --out results.json

Weights, adapters and prompts are random. Decoding speed is bs x (n - 1) / (T(n) - T(1)), where T(n) is the
time that bs prompts, sent at once, take with n output tokens each. Nothing is timed unless `bench.gpu_checks`
passes.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import gpu_checks, moe_checks
from bench.versions import versions
from executor.control.request import SamplingParams
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from tests.support.engine_rig import Ask, Pack, Rig, random_pack

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-8b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
    # For the CPU: what is measured there is everything but the model.
    "tiny": {
        "model_type": "qwen3",
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests in turn over `adapters` adapters of one rank; 0 is the base alone, `beside` resident
    adapters of that rank.
    """

    rank: int = 0
    adapters: int = 0
    beside: int = 0

    @property
    def name(self) -> str:
        if self.adapters:
            return f"rank {self.rank} x {self.adapters}"
        return f"base beside {self.beside}" if self.beside else "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report. Milliseconds are those of a decoding step; launch is the host's share of it."""

    load: str
    batch_size: int
    tokens_per_second: float
    step_ms: float
    launch_ms: float
    waiting_ms: float


class Bench:
    """One model and one engine, which holds every adapter that is asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        shape = SHAPES[options.model_shape]
        if options.layers:
            shape = shape | {"num_hidden_layers": options.layers}
        self.model = ModelConfig.parse(shape, {})
        self._options = options
        self._rng = np.random.default_rng(0)
        begun = time.perf_counter()
        self._parameters = dummy_parameters(self.model, dtype=torch.bfloat16, device=torch.device("cuda"))
        torch.cuda.synchronize()
        print(f"weights made in {time.perf_counter() - begun:.1f} s", flush=True)

    def rig(self, rank: int, adapters: int) -> Rig:
        """An engine with that many adapters, which have the same numbers in different memory."""
        rows, longest = max(self._options.rows), max(self._options.prompt + self._options.output, 1024) + 32
        device = torch.device("cuda")
        pack = random_pack(self.model, rank=rank, dtype=torch.bfloat16, device=device) if adapters else None
        packs: dict[str, Pack] = {str(i): pack for i in range(adapters)} if pack else {}
        begun = time.perf_counter()
        rig = Rig(
            self.model,
            self._parameters,
            packs=packs,
            max_running=rows,
            context=longest,
            pages=rows * -(-(self._options.prompt + self._options.output) // 16) + 256,
            max_step_tokens=16_384,
            graphs=not self._options.no_graphs,
        )
        torch.cuda.synchronize()
        print(f"engine made, graphs recorded in {time.perf_counter() - begun:.1f} s", flush=True)
        return rig

    def decode(self, rig: Rig, load: Load, rows: int) -> Row:
        """The median of several runs."""
        self._seconds(rig, load, rows, 4)  # compiles, and loads adapters
        first = statistics.median(self._seconds(rig, load, rows, 1) for _ in range(3))
        output = self._options.output
        rig.runner.reset()
        runs = [self._seconds(rig, load, rows, output) for _ in range(3)]
        seconds = (statistics.median(runs) - first) / (output - 1)
        steps = rig.runner.steps
        return Row(
            load=load.name,
            batch_size=rows,
            tokens_per_second=round(rows / seconds, 1),
            step_ms=round(seconds * 1e3, 3),
            launch_ms=round(rig.runner.launching / steps * 1e3, 3),
            waiting_ms=round(rig.runner.waiting / steps * 1e3, 3),
        )

    def first_token(self, rig: Rig, load: Load, tokens: int) -> float:
        """Milliseconds until the first token of one prompt alone, by the graph that its second time records.
        Few, since clocks fall by some per cent after ten in a row.
        """
        runs = [self._seconds(rig, load, 1, 1, prompt=tokens) for _ in range(7)]
        return round(statistics.median(runs[2:]) * 1e3, 2)

    def profile(self, rig: Rig, load: Load, rows: int) -> str:
        """Where the GPU's time goes in a few decoding steps."""
        self._seconds(rig, load, rows, 4)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            self._seconds(rig, load, rows, 12)
        table = profiler.key_averages().table(
            sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=70
        )
        return f"{load.name}, batch size {rows}\n{table}"

    def _seconds(self, rig: Rig, load: Load, rows: int, output: int, *, prompt: int = 0) -> float:
        sampling = SamplingParams(max_tokens=output, ignore_eos=True)
        asks = [
            Ask(
                prompt=self._rng.integers(0, self.model.vocab_size, prompt or self._options.prompt),
                sampling=sampling,
                adapter=str(i % load.adapters) if load.adapters else "",
            )
            for i in range(rows)
        ]
        torch.cuda.synchronize()
        begun = time.perf_counter()
        rig.serve(asks)
        return time.perf_counter() - begun


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-shape", choices=SHAPES, default="qwen3-8b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128], help="batch sizes")
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 64], help="of adapters")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 32], help="how many at once")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel, every step")
    parser.add_argument("--profile", action="store_true", help="say which kernels take the time")
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    return parser.parse_args()


def main() -> None:
    options = parse()
    (moe_checks if "moe" in SHAPES[options.model_shape]["model_type"] else gpu_checks).main()
    bench, rows, profiles, first_tokens = Bench(options), [], [], {}
    for rank in [0, *options.ranks]:
        rig = bench.rig(rank, max(options.adapters) if rank else 0)
        # The base within an engine that could serve adapters, too: what having them costs those without.
        loads = [Load(beside=rank), *(Load(rank=rank, adapters=count) for count in options.adapters if rank)]
        for load in loads:
            for size in options.rows:
                if load.adapters <= size or load.adapters == 1:
                    rows.append(bench.decode(rig, load, size))
                    print(rows[-1], flush=True)
            first_tokens[load.name] = bench.first_token(rig, load, 1024)
        if options.profile:
            profiles += [bench.profile(rig, loads[-1], size) for size in (1, 32) if size in options.rows]
        del rig
        gc.collect()
        torch.cuda.empty_cache()
    report = versions() | {
        "options": {name: str(value) for name, value in vars(options).items()},
        "decode": [asdict(row) for row in rows],
        "first_token_ms": first_tokens,
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "profiles": profiles,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))
    for profile in profiles:
        print("\n".join(line for line in profile.splitlines()[:14]))
    show(report)


def show(report: dict[str, Any]) -> None:
    """The short form."""
    print(f"{report['gpu']}, torch {report['torch']}, triton {report['triton']}, {report['commit']}")
    print(f"{'load':<14} {'bs':>4} {'tok/s':>9} {'step ms':>8} {'launch ms':>10} {'waiting ms':>11}")
    for row in report["decode"]:
        print(
            f"{row['load']:<14} {row['batch_size']:>4} {row['tokens_per_second']:>9} {row['step_ms']:>8} "
            f"{row['launch_ms']:>10} {row['waiting_ms']:>11}"
        )
    for name, milliseconds in report["first_token_ms"].items():
        print(f"first token of 1024, ms: {milliseconds:>8}  {name}")


if __name__ == "__main__":
    main()
