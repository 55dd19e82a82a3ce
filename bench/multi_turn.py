"""Conversations that take turns, more of them than the KV cache holds: is host memory behind it worth it?

    python -m bench.multi_turn --device cuda --model-shape qwen3-8b
    python -m bench.multi_turn --model-shape tiny --conversations 24 --first 256 --pages 256 --host-pages 2000

Each conversation begins with a long prompt; each turn adds what a user says and what the model answered.
Turns of one conversation come after the turns of all others, so that least-recently-used is at its worst: a
cache that is a little too small finds nothing. The engine alone, random weights, the same requests with and
without host memory.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.engine import SHAPES
from executor.control.request import SamplingParams
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from executor.model.parameters import Parameters
from tests.support.engine_rig import PAGE_SIZE, Ask, Rig


class Replay:
    """One engine and the conversations so far."""

    def __init__(
        self, model: ModelConfig, parameters: Parameters, options: argparse.Namespace, host_pages: int
    ) -> None:
        self._options = options
        self._rng = np.random.default_rng(0)
        self._vocabulary = model.vocab_size
        self.rig = Rig(
            model,
            parameters,
            max_running=options.concurrency,
            context=options.first + options.turns * (options.user + options.output) + PAGE_SIZE,
            pages=options.pages,
            host_pages=host_pages,
        )
        self._histories = [self._ids(options.first) for _ in range(options.conversations)]
        self.answers: list[list[int]] = []

    def run(self) -> dict[str, Any]:
        """Every turn of every conversation; the first turn, which nothing can help, is not timed."""
        self._turn()
        before = self.rig.scheduler.statistics()
        waves: list[float] = []
        prompt_tokens = 0
        begun = time.perf_counter()
        for _ in range(1, self._options.turns):
            prompt_tokens += sum(len(history) for history in self._histories)
            waves += self._turn()
        seconds = time.perf_counter() - begun
        after = self.rig.scheduler.statistics()
        turns = self._options.conversations * (self._options.turns - 1)
        return {
            "seconds": round(seconds, 2),
            "turns_per_second": round(turns / seconds, 2),
            "wave_ms": round(1e3 * statistics.median(waves), 1),
            "prompt_tokens": prompt_tokens,
            "steps": after.steps - before.steps,
            "saved_pages": after.host.saved - before.host.saved,
            "restored_pages": after.host.restored - before.host.restored,
            "restored_share": round(
                (after.host.restored - before.host.restored) * PAGE_SIZE / prompt_tokens, 3
            ),
        }

    def _turn(self) -> list[float]:
        """One turn of all conversations, `concurrency` at a time; seconds of each wave."""
        options, waves = self._options, []
        sampling = SamplingParams(max_tokens=options.output, ignore_eos=True)
        for first in range(0, options.conversations, options.concurrency):
            wave = range(first, min(first + options.concurrency, options.conversations))
            begun = time.perf_counter()
            answers = self.rig.serve([Ask(prompt=self._histories[i], sampling=sampling) for i in wave])
            waves.append(time.perf_counter() - begun)
            for i, answer in zip(wave, answers, strict=True):
                self.answers.append(answer.tokens)
                said = np.array(answer.tokens, dtype=np.int32)
                self._histories[i] = np.concatenate([self._histories[i], said, self._ids(options.user)])
        return waves

    def _ids(self, count: int) -> np.ndarray:
        return self._rng.integers(0, self._vocabulary, count).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model-shape", choices=SHAPES, default="qwen3-8b")
    parser.add_argument("--conversations", type=int, default=96)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--first", type=int, default=2048, help="tokens of a conversation's first prompt")
    parser.add_argument("--user", type=int, default=128, help="tokens that each turn adds")
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--pages", type=int, default=8192, help="of the KV cache, 16 tokens each")
    parser.add_argument("--host-pages", type=int, default=20_000, help="of host memory")
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = ModelConfig.parse(SHAPES[options.model_shape], {})
    parameters = dummy_parameters(model, dtype=dtype, device=device)
    rows: dict[str, Any] = {}
    answers: dict[str, list[list[int]]] = {}
    for name, host_pages in (("cache alone", 0), ("with host memory", options.host_pages)):
        replay = Replay(model, parameters, options, host_pages)
        rows[name] = replay.run()
        answers[name] = replay.answers
        print(f"{name}: {rows[name]}", flush=True)
        del replay
    first, second = answers.values()
    same = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    result = {"options": {k: str(v) for k, v in vars(options).items()}, "same_answers": same, "rows": rows}
    print(f"answers that are the same: {same:.1%}")
    if options.device == "cpu" and same < 1:
        raise SystemExit("answers differ: in float32 they must not")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
