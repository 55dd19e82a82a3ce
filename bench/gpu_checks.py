"""What must hold on a GPU before anything is timed there: kernels against their definitions, and a small
model, with adapters of many ranks, against the same engine on the CPU.

    python -m bench.gpu_checks
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import beside_checks, cut_checks, decode_checks, linear_checks
from executor.control.request import SamplingParams
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from executor.model.parameters import Parameters
from kernels import lora
from kernels.attention import QueryTiles, reference
from kernels.attention.tiles import cut
from kernels.lora import LoraBatch, PackedSlice, SliceEntry, SliceShape, SlotTable
from kernels.lora import reference as lora_reference
from tests.support import tiny_models
from tests.support.engine_rig import Answer, Ask, Pack, Rig, random_pack

_ERRORS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
_RANKS = (8, 16, 64, 24, 256)


_RIGS: dict[str, dict[str, Any]] = {
    "overlapping": {},
    "restored": {"pages": 100, "host_pages": 500},
    "in turns, chunks of 33": {"overlap": False, "chunk": 33},
    "preempted": {"pages": 100},
    "without graphs": {"graphs": False},
    "two slots for six adapters": {"slots": 2},
}
ALL_RIGS = tuple(_RIGS)
# What more passes are for: steps whose shape comes for the second time are recorded.
_AGAIN = {"overlapping": ("cached", "steps with chunks recorded"), "restored": ("cached",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A comparison and how it came out."""

    name: str
    error: float
    limit: float

    @property
    def good(self) -> bool:
        return self.error <= self.limit  # so that NaN is not


def run_all() -> Iterator[Check]:
    """All checks, as they end; takes well under a minute but for the compilation of kernels."""
    torch.manual_seed(0)
    yield from (
        check_attention(dtype, head_dim=head_dim, heads=heads, window=window)
        for dtype in _ERRORS
        for head_dim, heads, window in (
            (64, 8, None),
            (128, 32, None),
            (128, 14, 77),
            (256, 4, None),
            (80, 8, 5),
        )
    )
    yield from (check_lora(dtype, tokens) for dtype in _ERRORS for tokens in (1, 9, 40, 200, 300))
    for checks in (beside_checks, linear_checks, cut_checks, decode_checks):
        for name, dtype, error in checks.run_all():
            yield Check(name=f"{name}, {_name(dtype)}", error=error, limit=_ERRORS[dtype])
    yield from check_engine()


def check_attention(dtype: torch.dtype, *, head_dim: int, heads: int, window: int | None) -> Check:
    """Decodes and chunks after prefixes; pages that nobody may read are NaN, and so is the output."""
    from kernels.attention import paged

    device, page, kv_heads = torch.device("cuda"), 16, 2
    starts, lengths = np.array([0, 700, 33, 1023, 511, 64, 0]), np.array([1, 1, 1, 1, 90, 33, 70])
    tokens, columns = np.concatenate(([0], np.cumsum(lengths))), 70
    table = (torch.randperm(len(starts) * columns) + 1).view(-1, columns).int().to(device)
    kv = torch.randn(len(starts) * columns + 1, page, 2, kv_heads, head_dim, device=device).to(dtype)
    seen = torch.zeros(len(kv), page, dtype=torch.bool, device=device)
    for row, end in enumerate(starts + lengths):
        places = torch.arange(int(end), device=device)
        seen[table[row, places // page].long(), places % page] = True
    kv[~seen] = float("nan")
    q = torch.randn(int(tokens[-1]), heads, head_dim, device=device).to(dtype)
    out = torch.full((len(q), heads * head_dim), float("nan"), dtype=dtype, device=device)
    expected = torch.empty(out.shape, device=device)
    for rows, queries, splits in (
        (np.arange(4), 1, 4),
        (np.arange(4, 7), paged.queries_per_tile(heads // kv_heads, head_dim, dtype), 1),
    ):
        places = cut(rows, tokens[rows], starts[rows], lengths[rows], queries)
        tiles = QueryTiles(places=torch.from_numpy(places).to(device), queries=queries)
        paged.attend(out, q, kv, table, tiles, scale=head_dim**-0.5, window=window, splits=splits)
        reference.attend(expected, q.float(), kv, table, tiles, scale=head_dim**-0.5, window=window)
    name = f"attention {_name(dtype)} heads {heads}/2 of {head_dim}, window {window}"
    return Check(name=name, error=_distance(out, expected), limit=_ERRORS[dtype])


def check_lora(dtype: torch.dtype, tokens: int) -> Check:
    """Embedding and packed projections of adapters of five ranks, one slice of three untouched in one."""
    device, sizes = torch.device("cuda"), (640, 128, 130)
    shapes = [
        SliceShape(kind="embedding", in_features=50, out_features=sum(sizes)),
        *(SliceShape(kind="linear", in_features=1536, out_features=size) for size in sizes),
    ]
    pool = torch.full((4 << 20,), float("nan"), dtype=dtype, device=device)
    table, unit = SlotTable(pool=pool, shapes=shapes, slots=len(_RANKS)), 1
    for slot, rank in enumerate(_RANKS):
        entries = []
        for index, shape in enumerate(shapes):
            if (slot, index) == (1, 2):
                continue
            units = []
            for features in (shape.in_features, shape.out_features):
                size, first = rank * features, unit * 128 // dtype.itemsize
                pool[first : first + size] = torch.randn(size, device=device).to(dtype) * rank**-0.5
                units.append(unit)
                unit += -(-size * dtype.itemsize // 128)
            scaling = 0.5 + slot
            entries.append(
                SliceEntry(slice=index, a_unit=units[0], b_unit=units[1], rank=rank, scaling=scaling)
            )
        table.set_row(slot, entries)
    slots = np.sort(np.random.default_rng(tokens).integers(-1, len(_RANKS), tokens))
    slots[-1] = 4
    batch, starts = LoraBatch.of_tokens(slots.tolist()), np.cumsum((0, *sizes))
    packed = [PackedSlice(1 + i, int(starts[i]), int(starts[i + 1])) for i in range(3)]
    x = torch.randn(tokens, 1536, device=device).to(dtype) * 1536**-0.5
    ids = torch.randint(50, (tokens,), device=device)
    y = torch.randn(tokens, sum(sizes), device=device).to(dtype)
    expected = y.float().clone()
    tiled = batch.tiled(table)
    lora.apply(y, x, slices=packed, batch=tiled, table=table)
    lora.embed(y, ids, slice_index=0, batch=tiled, table=table)
    lora_reference.apply(expected, x, slices=packed, batch=batch, table=table)
    lora_reference.embed(expected, ids, slice_index=0, batch=batch, table=table)
    return Check(
        name=f"lora {_name(dtype)}, {tokens} tokens", error=_distance(y, expected), limit=_ERRORS[dtype]
    )


def check_engine(
    raw: Mapping[str, Any] = tiny_models.DENSE,
    *,
    ranks: Sequence[int] = (*_RANKS, 8),
    rigs: Sequence[str] = ALL_RIGS,
) -> Iterator[Check]:
    """Mixed greedy and seeded requests over six adapters, two of them DoRA with biases; chunked, cached,
    preempted: as the CPU does. The dense model in bfloat16, too.
    """
    model = ModelConfig.parse(raw, {})
    cpu = dummy_parameters(model, dtype=torch.float32, device=torch.device("cpu"))
    gpu = _moved(cpu, model, torch.device("cuda"))
    packs = _packs(model, torch.float32, ranks)
    asks = _asks(model, list(packs))
    limits = {"packs": packs, "max_running": 24, "context": 1024, "max_step_tokens": 256}
    expected = Rig(model, cpu, pages=2000, overlap=False, **limits).serve(asks)
    for name in rigs:
        rig = Rig(model, gpu, **{"pages": 2000, **limits, **_RIGS[name]})
        yield from _compare(f"{model.family} engine {name}", rig.serve(asks), expected)
        if name == "preempted" and not rig.scheduler.statistics().preemptions:
            raise RuntimeError("nothing was preempted: give this check fewer pages")
        for again in _AGAIN.get(name, ()):
            yield from _compare(f"{model.family} engine {name}, {again}", rig.serve(asks), expected)
        if name == "restored" and rig.scheduler.statistics().host.restored < 100:
            raise RuntimeError("hardly a page came back from host memory: give this check fewer pages")
    if model.experts is None:
        yield from _check_rounded(model, cpu, asks, expected, forms=True)
        plain = Rig(
            model,
            cpu,
            pages=2000,
            overlap=False,
            **{**limits, "packs": _packs(model, torch.float32, ranks, forms=False)},
        )
        yield from _check_rounded(model, cpu, asks, plain.serve(asks), forms=False)


def _packs(
    model: ModelConfig, dtype: torch.dtype, ranks: Sequence[int] = (*_RANKS, 8), *, forms: bool = True
) -> dict[str, Pack]:
    """Some on embedding and head too; with `forms`, some DoRA with biases."""
    return {
        f"{i}": random_pack(
            model, rank=rank, dtype=dtype, seed=i, ends=i % 2 == 0, forms=forms and i % 3 == 1
        )
        for i, rank in enumerate(ranks)
    }


def _check_rounded(
    model: ModelConfig, cpu: Parameters, asks: list[Ask], expected: list[Answer], *, forms: bool
) -> Iterator[Check]:
    """In bfloat16, with and without graphs: log probabilities of the first tokens, where nothing has gone
    apart yet, and of base rows after them. Without `forms` all adapters are computed beside the products.
    """
    gpu = _moved(cpu, model, torch.device("cuda"), torch.bfloat16)
    for graphs in (True, False):
        rig = Rig(
            model,
            gpu,
            packs=_packs(model, torch.bfloat16, forms=forms),
            max_running=24,
            context=1024,
            pages=2000,
            max_step_tokens=256,
            graphs=graphs,
        )
        errors = []
        for mine, theirs in zip(rig.serve(asks), expected, strict=True):
            same = [a == b for a, b in zip(mine.tokens, theirs.tokens, strict=True)]
            count = same.index(False) if False in same else len(same)
            pairs = zip(mine.logprobs[:count], theirs.logprobs[:count], strict=True)
            errors += [abs(a - b) for a, b in pairs]
        name = f"engine bfloat16, forms {forms}, graphs {graphs}: mean error of {len(errors)} logprobs"
        yield Check(name=name, error=float(np.mean(errors)), limit=0.05)
        yield Check(name="  number of logprobs to compare, below", error=-len(errors), limit=-200)


def _asks(model: ModelConfig, adapters: list[str]) -> list[Ask]:
    rng = np.random.default_rng(1)
    greedy = SamplingParams(max_tokens=24, logprobs=0)
    warm = replace(
        greedy,
        temperature=0.8,
        top_k=50,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
    )
    return [
        Ask(
            prompt=rng.integers(0, model.vocab_size, int(rng.integers(1, 200))),
            adapter=["", *adapters][i % (len(adapters) + 1)],
            sampling=replace(warm, seed=i) if i % 3 == 0 else greedy,
        )
        for i in range(36)
    ]


def _compare(name: str, answers: list[Answer], expected: list[Answer]) -> list[Check]:
    """Tokens up to the first that differs, which is allowed in few requests: random logits nearly tie."""
    apart, errors = 0, [0.0]
    for mine, theirs in zip(answers, expected, strict=True):
        same = next(
            (i for i, pair in enumerate(zip(mine.tokens, theirs.tokens, strict=True)) if pair[0] != pair[1]),
            len(theirs.tokens),
        )
        apart += same < len(theirs.tokens)
        errors += [abs(a - b) for a, b in zip(mine.logprobs[:same], theirs.logprobs[:same], strict=True)]
    return [
        Check(name=f"{name}: logprobs", error=max(errors), limit=1e-3),
        Check(name=f"{name}: share of requests with other tokens", error=apart / len(expected), limit=0.03),
    ]


def _moved(
    parameters: Parameters, model: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32
) -> Parameters:
    moved = Parameters.allocate(model, dtype=dtype, device=device)
    source = parameters.destinations(model)
    for name, view in moved.destinations(model).items():
        view.copy_(source[name])
    return moved


def _distance(out: Tensor, expected: Tensor) -> float:
    return ((out.float() - expected).norm() / expected.norm()).item()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    report(run_all())


def report(checks: Iterable[Check]) -> None:
    """Print each as it ends. Raises SystemExit where one is bad."""
    started, good = time.perf_counter(), True
    for check in checks:
        good = good and check.good
        seconds = time.perf_counter() - started
        said = f"{'ok ' if check.good else 'BAD'} {check.error:9.2e} (limit {check.limit:.0e})"
        print(f"{seconds:6.1f} s  {said}  {check.name}", flush=True)
    if not good:
        raise SystemExit("a check failed")


if __name__ == "__main__":
    main()
