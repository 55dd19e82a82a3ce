"""How near the engine's log probabilities are to transformers' in float32, beside transformers' in bfloat16.

    PYTHONPATH=.:protos python -m bench.gpu_oracle

The engine answers prompts in bfloat16; transformers is then fed prompts and answers and scores every token of
them. The engine's mean error may be 1.2 times as large as that of transformers in bfloat16, and its most
probable token no more often another. With graphs and without, chunked, preempted, from cached prefixes; the
demo's model and one of random weights that is made on the way.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from bench.gpu_checks import Check
from bench.versions import versions
from executor.control.request import SamplingParams
from executor.model.config import ModelConfig
from executor.model.weights import load_parameters
from tests.support.engine_rig import Answer, Ask, Rig

DEMO = Path(__file__).resolve().parents[1] / "demo" / "qwen3-tiny"
PROMPTS, OUTPUT, LONGEST = 64, 32, 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Of a sequence's tokens from the second on: log probabilities `[L - 1]`, and which was most probable."""

    logprobs: np.ndarray
    best: np.ndarray


class Reference:
    """transformers in one dtype."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device).eval()
        self._device = device
        self._known: dict[bytes, Scored] = {}

    @torch.inference_mode()
    def score(self, ids: np.ndarray) -> Scored:
        key = ids.tobytes()
        if key not in self._known:
            ids_T = torch.from_numpy(ids).long().to(self._device)
            logits_TV = self._model(ids_T[None]).logits[0, :-1].float()
            logprobs = logits_TV.log_softmax(-1).gather(1, ids_T[1:, None])[:, 0]
            self._known[key] = Scored(
                logprobs=logprobs.cpu().numpy(), best=logits_TV.argmax(-1).cpu().numpy()
            )
        return self._known[key]


def random_checkpoint(folder: Path, device: torch.device) -> Path:
    """The shape of Qwen3-0.6B; logits with a standard deviation of about 2."""
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        initializer_range=0.06,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with device:
        model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def asks(vocab_size: int) -> list[Ask]:
    """Some of them begin alike, a few pages long."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, vocab_size, 64)
    prompts = [rng.integers(0, vocab_size, int(rng.integers(2, LONGEST))) for _ in range(PROMPTS)]
    prompts[1::4] = [np.concatenate((shared, prompt)) for prompt in prompts[1::4]]
    sampling = SamplingParams(max_tokens=OUTPUT, logprobs=0, ignore_eos=True)
    return [Ask(prompt=prompt, sampling=sampling) for prompt in prompts]


def answers(
    folder: Path, dtype: torch.dtype, device: torch.device, requests: Sequence[Ask]
) -> Iterator[tuple[str, list[Answer]]]:
    """Of engines that take different ways."""
    model = ModelConfig.load(folder)
    parameters = load_parameters(folder, model, dtype=dtype, device=device)
    longest = LONGEST + 64 + OUTPUT
    limits: dict[str, Any] = {"max_running": PROMPTS, "context": longest, "max_step_tokens": 8192}
    enough = PROMPTS * -(-longest // 16)
    ways: dict[str, dict[str, Any]] = {
        "with graphs": {"pages": enough},
        "without graphs": {"pages": enough, "graphs": False},
        "chunks of 48": {"pages": enough, "chunk": 48},
        "preempted": {"pages": enough // 4},
        "deterministic": {"pages": enough, "deterministic": True},
    }
    for name, options in ways.items():
        rig = Rig(model, parameters, **limits, **options)
        yield name, rig.serve(requests)
        if name == "preempted" and not rig.scheduler.statistics().preemptions:
            raise RuntimeError("nothing was preempted: give fewer pages")
        if name == "with graphs":
            yield f"{name}, cached", rig.serve(requests)
        del rig
        gc.collect()


def compare(
    name: str,
    requests: Sequence[Ask],
    given: Sequence[Answer],
    exact: Reference,
    rounded: Reference,
    *,
    limit: float,
) -> Iterator[Check]:
    """Over the answers' tokens."""
    ours, theirs, agree, they_agree = [], [], [], []
    for ask, answer in zip(requests, given, strict=True):
        ids = np.concatenate((ask.prompt, answer.tokens)).astype(np.int64)
        first = len(ask.prompt) - 1
        right, other = exact.score(ids), rounded.score(ids)
        ours.append(np.abs(np.array(answer.logprobs) - right.logprobs[first:]))
        theirs.append(np.abs(other.logprobs - right.logprobs)[first:])
        agree.append(right.best[first:] == answer.tokens)
        they_agree.append((right.best == other.best)[first:])
    error, reference = float(np.concatenate(ours).mean()), float(np.concatenate(theirs).mean())
    share, expected = float(np.concatenate(agree).mean()), float(np.concatenate(they_agree).mean())
    count = sum(map(len, ours))
    # Both shares are of the same random tokens; a standard error of one says how much chance is in them.
    chance = (expected * (1 - expected) / count) ** 0.5
    said = f"{name}: {count} tokens, mean error {error:.5f}, transformers in bfloat16 {reference:.5f}"
    yield Check(name=said, error=error, limit=max(1.2 * reference, limit))
    said = f"  most probable as in float32: {share:.4f}, transformers in bfloat16 {expected:.4f}"
    yield Check(name=said, error=expected - share, limit=chance)


def check(folder: Path, title: str, device: torch.device) -> Iterator[Check]:
    requests = asks(ModelConfig.load(folder).vocab_size)
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = Reference(folder, torch.float32, device)
    rounded = Reference(folder, torch.bfloat16, device)
    for name, given in answers(folder, torch.bfloat16, device, requests):
        yield from compare(f"{title}, {name}", requests, given, exact, rounded, limit=0.0)
    if folder == DEMO:
        for name, given in answers(folder, torch.float32, device, requests):
            yield from compare(f"{title}, float32, {name}", requests, given, exact, exact, limit=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--demo-only", action="store_true", help="leave the random model out")
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    device, checks = torch.device(options.device), []
    with tempfile.TemporaryDirectory() as temporary:
        models = {"demo": DEMO}
        if not options.demo_only:
            models["Qwen3-0.6B's shape"] = random_checkpoint(Path(temporary), device)
        for title, folder in models.items():
            for one in check(folder, title, device):
                checks.append(one)
                print("ok " if one.good else "BAD", one.name, flush=True)
    if options.out:
        lines = [{"name": one.name, "error": one.error, "limit": one.limit} for one in checks]
        options.out.write_text(json.dumps(versions() | {"checks": lines}, indent=1))
    if not all(one.good for one in checks):
        raise SystemExit("a check failed")


if __name__ == "__main__":
    main()
