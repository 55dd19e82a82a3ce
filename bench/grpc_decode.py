"""What serving costs beside the engine: decoding through gRPC, and a soak, on three real processes.

    PYTHONPATH=.:protos python -m bench.grpc_decode --device cuda --dtype bfloat16 --out rows.json

One store, executor, frontend and client, each a process. Weights, adapters and prompts (token ids) are
random. Speeds are as in `bench.engine`: bs x (n - 1) / (T(n) - T(1)). Also: the time from the start of the
processes to the first token, and with `--soak-seconds` random traffic of which a part is cancelled.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import uvloop
from safetensors.torch import save_file

from bench.engine import SHAPES
from bench.soak import for_seconds, soak
from executor.model.config import ModelConfig
from executor.model.layout import named_slices
from lorikeet.v1 import generation_pb2
from rpc.tuning import tune_process
from tests.support import service_stack, store_adapters
from tests.support.frontend_model_folder import byte_level_tokenizer, write_model_folder
from tests.support.service_stack import Stack, stack_at

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_model(folder: Path, shape: dict[str, Any]) -> Path:
    """A model without weights whose tokenizer knows as many tokens as the shape does."""
    write_model_folder(folder)
    tokenizer = json.loads(byte_level_tokenizer().to_str())
    vocabulary = tokenizer["model"]["vocab"]
    known = set(vocabulary.values())
    vocabulary |= {f"t{index}x": index for index in range(shape["vocab_size"]) if index not in known}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def write_adapters(
    folder: Path,
    shape: dict[str, Any],
    *,
    count: int,
    rank: int,
    projections: tuple[str, ...] = PROJECTIONS,
) -> None:
    """Adapters `folder/0`, ...: the same numbers, scaled differently, so that they differ."""
    model = ModelConfig.parse(shape, {})
    tensors: dict[str, torch.Tensor] = {}
    for named in named_slices(model):
        if named.module.rpartition(".")[2] in projections:
            path = f"base_model.model.{named.module}"
            for part, size in (
                ("lora_A", (rank, named.shape.in_features)),
                ("lora_B", (named.shape.out_features, rank)),
            ):
                std = 0.1 * size[1] ** -0.5
                tensors[f"{path}.{part}.weight"] = torch.empty(size, dtype=torch.bfloat16).normal_(std=std)
    for index in range(count):
        place = folder / str(index)
        place.mkdir(parents=True)
        weights = place / "adapter_model.safetensors"
        if index:
            os.link(folder / "0" / weights.name, weights)
        else:
            save_file(tensors, weights)
        config = store_adapters.lora_config(projections, r=rank, lora_alpha=rank + index)
        (place / "adapter_config.json").write_text(json.dumps(config))


class Client:
    """Sends requests of random prompts."""

    def __init__(self, stack: Stack, options: argparse.Namespace) -> None:
        self._stack = stack
        self._options = options
        self._vocabulary = SHAPES[options.model_shape]["vocab_size"]
        self._rng = np.random.default_rng(0)
        self.messages = self.tokens = 0

    async def one(self, output: int, *, adapter: str = "", prompt: int = 0, **sampling: Any) -> None:
        ids = self._rng.integers(0, self._vocabulary, prompt or self._options.prompt)
        request = generation_pb2.GenerateRequest(
            tokens=generation_pb2.TokenIds(ids=ids.tolist()),
            adapter=adapter,
            sampling=generation_pb2.SamplingParams(
                **{"temperature": 0, "max_tokens": output, "ignore_eos": True, **sampling}
            ),
        )
        count = 0
        async for response in self._stack.generation.Generate(request, timeout=300):
            self.messages += 1
            self.tokens += len(response.token_ids)
            count += len(response.token_ids)
        assert count == output, (count, output)

    async def decode(self, rows: int, adapters: int) -> dict[str, Any]:
        """The median of several runs."""
        output = self._options.output
        await self._seconds(rows, adapters, 4)
        first = statistics.median([await self._seconds(rows, adapters, 1) for _ in range(3)])
        self.messages = self.tokens = 0
        cpu = self._cpu()
        runs = [await self._seconds(rows, adapters, output) for _ in range(3)]
        spent = {name: seconds - cpu[name] for name, seconds in self._cpu().items()}
        seconds = (statistics.median(runs) - first) / (output - 1)
        return {
            "load": f"rank {self._options.rank} x {min(adapters, rows)}" if adapters else "base",
            "batch_size": rows,
            "tokens_per_second": round(rows / seconds, 1),
            "step_ms": round(seconds * 1e3, 3),
            "first_ms": round(first * 1e3, 1),
            "tokens_a_message": round(self.tokens / self.messages, 2),
            "cpu_us_a_token": {name: round(s / self.tokens * 1e6, 1) for name, s in spent.items()},
        }

    async def _seconds(self, rows: int, adapters: int, output: int) -> float:
        names = [f"a{row % adapters}" if adapters else "" for row in range(rows)]
        begun = time.perf_counter()
        await asyncio.gather(*(self.one(output, adapter=name) for name in names))
        return time.perf_counter() - begun

    def _cpu(self) -> dict[str, float]:
        stack = self._stack
        pids = {"client": os.getpid(), "frontend": stack.frontend.pid, "executor": stack.executor.pid}
        return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()}


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shape = SHAPES[options.model_shape] | ({"num_hidden_layers": options.layers} if options.layers else {})
    model_dir = write_model(folder / "model", shape)
    write_adapters(folder / "adapters", shape, count=options.adapters, rank=options.rank)
    size = (folder / "adapters/0/adapter_model.safetensors").stat().st_size * (
        1 if options.dtype != "float32" else 2
    )
    executor_flags = [
        f"--device={options.device}",
        f"--dtype={options.dtype}",
        "--load-format=dummy",
        f"--max-running={max(options.rows)}",
        f"--max-step-tokens={options.step_tokens}",
        f"--adapter-slots={options.slots or options.adapters}",
        f"--adapter-pool-bytes={(options.slots or options.adapters) * size * 21 // 20}",
        f"--max-lora-rank={max(64, options.rank)}",
    ]
    services = folder / "services"
    services.mkdir()
    report: dict[str, Any] = {"rows": [], "options": {k: str(v) for k, v in vars(options).items()}}
    begun = time.perf_counter()
    async with stack_at(
        services,
        model_dir=model_dir,
        roots=[folder / "adapters"],
        executor_flags=executor_flags,
        store_flags=[f"--arena-bytes={options.adapters * size * 21 // 20 + (64 << 20)}"],
    ) as stack:
        ready = time.perf_counter() - begun
        client = Client(stack, options)
        await client.one(1)
        report["start"] = {"serving": round(ready, 1), "first_token": round(time.perf_counter() - begun, 1)}
        report["executor_log"] = stack.executor.log.read_text(errors="replace").splitlines()
        print("\n".join(report["executor_log"]), report["start"], sep="\n", flush=True)
        tune_process()
        begun = time.perf_counter()
        for index in range(options.adapters):
            await stack.load(f"a{index}", folder / "adapters" / str(index))
        report["adapters_loaded_s"] = round(time.perf_counter() - begun, 1)
        for adapters in (0, options.adapters):
            for rows in options.rows:
                report["rows"].append(await client.decode(rows, adapters))
                print(report["rows"][-1], flush=True)
        if options.soak_seconds:
            report["soak"] = await soak(
                stack,
                client.one,
                until=for_seconds(options.soak_seconds),
                workers=options.soak_workers,
                longest_prompt=options.longest_prompt,
                names=[f"a{index}" for index in range(options.adapters)],
            )
            report["after_soak"] = [await client.decode(rows, 0) for rows in options.rows[-2:]]
            print(report["after_soak"], flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-shape", choices=SHAPES, default="qwen3-8b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128], help="batch sizes")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--slots", type=int, help="adapters on the GPU at once; all when left out")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--step-tokens", type=int, default=16_384)
    parser.add_argument("--start-seconds", type=float, default=240.0, help="patience with the start")
    parser.add_argument("--soak-seconds", type=float, default=0.0)
    parser.add_argument("--soak-workers", type=int, default=160)
    parser.add_argument("--longest-prompt", type=int, default=1500)
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    service_stack.START_SECONDS = options.start_seconds
    with tempfile.TemporaryDirectory() as folder:
        report = uvloop.run(measure(options, Path(folder)))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))
    print(f"{'load':<14} {'bs':>4} {'tok/s':>9} {'step ms':>8} {'tokens a message':>17}")
    for row in report["rows"]:
        print(
            f"{row['load']:<14} {row['batch_size']:>4} {row['tokens_per_second']:>9} {row['step_ms']:>8} "
            f"{row['tokens_a_message']:>17}"
        )
    print("start to first token, s:", report["start"])


if __name__ == "__main__":
    main()
