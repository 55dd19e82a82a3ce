"""Whether deterministic mode keeps its promise on a GPU: the same bits alone, in any batch, chunked, cached,
preempted, with graphs and without.

    PYTHONPATH=.:protos python -m bench.gpu_deterministic
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bench.gpu_checks import Check
from executor.control.request import SamplingParams
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from kernels.attention import fixed
from kernels.attention.tiles import QueryTiles, cut
from kernels.linear.fixed import multiply
from tests.support import tiny_models
from tests.support.engine_rig import Answer, Ask, Rig, random_pack

# With heads as those of large models have them, and sequences of more than two segments.
SMALL = tiny_models.DENSE | {
    "head_dim": 128,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "sliding_window": 700,
}
LONGEST, OUTPUT, REQUESTS = 1300, 24, 24


def check_product(outputs: int, inputs: int, dtype: torch.dtype) -> Check:
    """Rows of products of one to 700 tokens beside those of 1,000."""
    x = torch.randn(1000, inputs, device="cuda").to(dtype)
    weight = (torch.randn(outputs, inputs, device="cuda") * inputs**-0.5).to(dtype)
    whole, different = multiply(x, weight, None), 0
    for first, last in ((0, 1), (999, 1000), (5, 22), (100, 164), (100, 165), (300, 1000)):
        different += not torch.equal(multiply(x[first:last], weight, None), whole[first:last])
    expected = torch.nn.functional.linear(x.double(), weight.double())
    error = ((whole.double() - expected).norm() / expected.norm()).item()
    good = error < (1e-5 if dtype == torch.float32 else 1e-2)
    name = f"product {inputs} -> {outputs}, {dtype}: batches with other bits (error {error:.1e})"
    return Check(name=name, error=different + (not good), limit=0)


def check_attention(dtype: torch.dtype, window: int | None) -> Check:
    """Positions of one sequence as they are decoded and as chunks of it."""
    length, heads, kv_heads, head_dim, page = 2500, 32, 8, 128, 16
    columns = -(-length // page)
    table = torch.randperm(columns, device="cuda").int()[None]
    kv = torch.randn(columns, page, 2, kv_heads, head_dim, device="cuda").to(dtype)
    q = torch.randn(length, heads, head_dim, device="cuda").to(dtype)

    def attend(first: int, last: int, queries: int, splits: int) -> torch.Tensor:
        zero, start, count = (np.array([n]) for n in (0, first, last - first))
        places = cut(zero, zero, start, count, queries)
        tiles = QueryTiles(places=torch.from_numpy(places).cuda(), queries=queries)
        out = torch.full((last - first, heads * head_dim), float("nan"), dtype=dtype, device="cuda")
        fixed.attend(out, q[first:last], kv, table, tiles, scale=head_dim**-0.5, window=window, splits=splits)
        return out

    queries = fixed.queries_per_tile(heads // kv_heads, dtype)
    whole, different = attend(0, length, queries, 1), 0
    for position in (0, 15, 511, 512, 513, 1700, 2499):
        for splits in (1, 2, 8, 32):
            different += not torch.equal(attend(position, position + 1, 1, splits)[0], whole[position])
    for first, last in ((3, 80), (500, 530), (1000, 2500)):
        different += not torch.equal(attend(first, last, queries, 1), whole[first:last])
    return Check(name=f"attention {dtype}, window {window}: other bits", error=different, limit=0)


def check_engine(dtype: torch.dtype) -> Iterator[Check]:
    model = ModelConfig.parse(SMALL, {})
    parameters = dummy_parameters(model, dtype=dtype, device=torch.device("cuda"))
    packs = {
        f"{i}": random_pack(model, rank=rank, dtype=dtype, seed=i, ends=i == 1, forms=i == 2)
        for i, rank in enumerate((8, 64, 16, 256))
    }
    longest = LONGEST + OUTPUT + 16
    limits: dict[str, Any] = {"packs": packs, "context": longest, "deterministic": True}
    enough = REQUESTS * -(-longest // 16)
    asks = requests(model)
    rig = Rig(model, parameters, max_running=1, pages=enough, **limits)
    alone = [rig.serve([ask])[0] for ask in asks]
    del rig
    ways: dict[str, dict[str, Any]] = {
        "together": {"pages": enough},
        "without graphs": {"pages": enough, "graphs": False},
        "chunks of 100": {"pages": enough, "chunk": 100},
        "preempted": {"pages": enough // 5},
        "two slots for four adapters": {"pages": enough, "slots": 2},
    }
    for name, options in ways.items():
        rig = Rig(model, parameters, max_running=REQUESTS, **limits, **options)
        yield _compare(f"engine {dtype}, {name}", rig.serve(asks), alone)
        if name == "together":
            yield _compare(f"engine {dtype}, cached", rig.serve(asks), alone)
    yield _follow(model, parameters, {"max_running": 4, "pages": enough, **limits}, asks, alone)
    usual: dict[str, Any] = limits | {"deterministic": False}
    plain = Rig(model, parameters, max_running=REQUESTS, pages=enough, **usual)
    others = _compare("", plain.serve(asks), alone).error
    yield Check(
        name=f"engine {dtype}, without the mode: requests with the same bits", error=-others, limit=-1
    )


def _follow(
    model: ModelConfig, parameters: Any, limits: dict[str, Any], asks: list[Ask], alone: list[Answer]
) -> Check:
    """Prompts that begin with an answer, whose KV is cached or not."""
    following = [
        replace(ask, prompt=np.concatenate((ask.prompt, answer.tokens, [7])))
        for ask, answer in zip(asks[:8], alone[:8], strict=True)
    ]
    warm = Rig(model, parameters, **limits)
    warm.serve(asks[:8])
    cold = Rig(model, parameters, **limits)
    return _compare("after an answer", warm.serve(following), cold.serve(following))


def _compare(name: str, answers: list[Answer], alone: list[Answer]) -> Check:
    pairs = list(zip(answers, alone, strict=True))
    tokens = sum(a.tokens != b.tokens for a, b in pairs)
    different = sum((a.tokens, a.logprobs) != (b.tokens, b.logprobs) for a, b in pairs)
    return Check(name=f"{name}: requests with other bits (tokens: {tokens})", error=different, limit=0)


def requests(model: ModelConfig) -> list[Ask]:
    rng = np.random.default_rng(1)
    sampling = SamplingParams(max_tokens=OUTPUT, logprobs=0, ignore_eos=True)
    return [
        Ask(
            prompt=rng.integers(0, model.vocab_size, int(rng.integers(1, LONGEST if i % 3 else 60))),
            adapter=["", "0", "1", "2", "3"][i % 5],
            sampling=replace(sampling, temperature=0.8, seed=i) if i % 4 == 1 else sampling,
        )
        for i in range(REQUESTS)
    ]


def run_all(dtypes: Sequence[torch.dtype]) -> Iterator[Check]:
    torch.manual_seed(0)
    for outputs, inputs in ((6144, 4096), (4096, 12_288), (1000, 96)):
        yield check_product(outputs, inputs, torch.bfloat16)
    yield check_product(512, 1536, torch.float32)
    for dtype in (torch.bfloat16, torch.float32):
        for window in (None, 700):
            yield check_attention(dtype, window)
    for dtype in dtypes:
        yield from check_engine(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], help="of the engine")
    good = True
    for check in run_all([getattr(torch, name) for name in parser.parse_args().dtypes]):
        good = good and check.good
        print("ok " if check.good else "BAD", f"{check.error:g}", check.name, flush=True)
    if not good:
        raise SystemExit("a check failed")


if __name__ == "__main__":
    main()
