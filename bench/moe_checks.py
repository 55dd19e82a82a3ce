"""What must hold on a GPU before anything with experts is timed there: their kernels in the shape of
Qwen3-30B-A3B against float32, and a small model with experts against the same engine on the CPU.

    python -m bench.moe_checks
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu_checks import Check, check_engine, report
from kernels import moe, moe_lora
from kernels.lora import LoraBatch, SliceEntry, SliceShape, SlotTable
from kernels.moe import ExpertWeights, RouterForm, Routing, gpu, gpu_products, gpu_routing
from kernels.moe.tiles import Tile
from kernels.moe_lora import ExpertLora
from tests.support import tiny_models

Job = tuple[str, tuple[Any, ...]]
"""`tile` and a Tile, or `case` and rank (0: the base alone), tokens, adapters; `shared`, of adapters whose
experts share matrices.
"""

HIDDEN, WIDE, EXPERTS, TOP_K = 2048, 768, 128, 8
LIMIT = 1e-2
_PROCESSES = 14


class Layers:
    """Random experts of some layers, and inputs whose experts differ from copy to copy."""

    def __init__(self, layers: int, copies: int) -> None:
        make = torch.Generator(device="cuda").manual_seed(0)
        self.weights = [
            ExpertWeights(
                random(EXPERTS, 2 * WIDE, HIDDEN, std=HIDDEN**-0.5, make=make),
                random(EXPERTS, HIDDEN, WIDE, std=WIDE**-0.5, make=make),
            )
            for _ in range(layers)
        ]
        self._copies, self._make = copies, make

    def inputs(self, tokens: int) -> tuple[Tensor, Tensor]:
        """x `[tokens, HIDDEN]`, and logits for each copy."""
        x = random(tokens, HIDDEN, std=1.0, make=self._make)
        return x, random(self._copies, tokens, EXPERTS, std=1.0, make=self._make)

    def of(self, copy: int) -> ExpertWeights:
        return self.weights[copy % len(self.weights)]


def random(*shape: int, std: float, make: torch.Generator) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_(std=std, generator=make)


def make_table(rank: int, adapters: int, copies: int, *, shared: bool = False) -> SlotTable:
    """Every expert of every copy of every adapter has weights of its own; if `shared`, but for lora_a of gate
    and up and lora_b of down, which are the first expert's.
    """
    shapes = [
        SliceShape(kind="linear", in_features=inputs, out_features=outputs)
        for inputs, outputs in ((HIDDEN, WIDE), (HIDDEN, WIDE), (WIDE, HIDDEN))
    ] * (EXPERTS * copies)
    a_units, b_units = rank * HIDDEN // 64, rank * WIDE // 64
    total = adapters * len(shapes) * (a_units + b_units)
    pool = torch.empty(total * 64, device="cuda", dtype=torch.bfloat16).normal_(std=0.05)
    table, unit = SlotTable(pool=pool, shapes=shapes, slots=adapters), 0
    for slot in range(adapters):
        entries, outer = [], [0, 0]
        for index in range(len(shapes)):
            expert, j = index // 3 % EXPERTS, index % 3
            first, second = (a_units, b_units) if j < 2 else (b_units, a_units)
            a_unit, b_unit = unit, unit + first
            if shared and j < 2:
                a_unit = outer[0] = unit if not expert and not j else outer[0]
            elif shared:
                b_unit = outer[1] = unit + first if not expert else outer[1]
            entries.append(SliceEntry(slice=index, a_unit=a_unit, b_unit=b_unit, rank=rank, scaling=0.5))
            unit += first + second
        table.set_row(slot, entries)
    return table


def slots_of(tokens: int, adapters: int) -> list[int]:
    """Tokens in turn over adapters, sorted."""
    return sorted(i % adapters for i in range(tokens))


def lora_of(slots: list[int], table: SlotTable, copy: int) -> ExpertLora:
    """As the decoder makes it for a layer of a recorded step."""
    batch = LoraBatch.of_tokens(slots).tiled(table)
    slots_T = torch.tensor(slots, dtype=torch.int32, device="cuda")
    batch = replace(batch, slots_T=slots_T, shares=table.traits(batch.slots).shares)
    return ExpertLora(first_slice=3 * EXPERTS * copy, experts=EXPERTS, batch=batch, table=table)


def route(logits_TE: Tensor) -> Routing:
    return gpu_routing.route(logits_TE, top_k=TOP_K, form=RouterForm.NORMALISED)


def check_tile(tile: Tile) -> float:
    """The error of both products in one tile, relative to float32."""
    layers, tokens = Layers(1, 1), 40
    x, logits = layers.inputs(tokens)
    routing, weights = route(logits[0]), layers.of(0)
    made = gpu_routing.arrange(routing, EXPERTS, block=tile.pairs)
    wide = gpu_products.gate_up(x, weights.gate_up_E2ID, routing, made, tile, activated=True)
    out = gpu_products.add_up(gpu_products.down(wide, weights.down_EDI, routing, made, tile), routing)
    return _distance(out, _expected(x, routing, weights, None, [-1] * tokens))


def check_shared(rank: int, tokens: int, adapters: int) -> float:
    return check_case(rank, tokens, adapters, shared=True)


def check_case(rank: int, tokens: int, adapters: int, *, shared: bool = False) -> float:
    """The error of the base (rank 0), or of base and LoRA together and by hooks, relative to float32."""
    layers = Layers(1, 1)
    x, logits = layers.inputs(tokens)
    routing, weights = route(logits[0]), layers.of(0)
    if not rank:
        out = moe.add_up(gpu.experts(x, routing, weights, adapt=None))
        return _distance(out, _expected(x, routing, weights, None, [-1] * tokens))
    table, slots = make_table(rank, adapters, 1, shared=shared), slots_of(tokens, adapters)
    lora = lora_of(slots, table, 0)
    expected = _expected(x, routing, weights, table, slots)
    together = moe.add_up(moe_lora.experts(x, routing, weights, lora=lora, triton=True))
    by_hooks = moe.add_up(gpu.experts(x, routing, weights, adapt=lora))
    return max(_distance(together, expected), _distance(by_hooks, expected))


def _expected(
    x_TD: Tensor, routing: Routing, weights: ExpertWeights, table: SlotTable | None, slots: list[int]
) -> Tensor:
    """In float32, expert by expert and slot by slot."""
    out_TD, slots_T = torch.zeros(x_TD.shape, device="cuda"), torch.tensor(slots, device="cuda")
    for expert in range(EXPERTS):
        for slot in set(slots):
            t, chosen = ((routing.experts_TX == expert) & (slots_T == slot)[:, None]).nonzero(as_tuple=True)
            rows = x_TD[t].float()
            y = rows @ weights.gate_up_E2ID[expert].float().t()
            if table is not None:
                y += torch.cat([_delta(rows, table, slot, 3 * expert + j) for j in range(2)], dim=1)
            gate, up = y.chunk(2, dim=-1)
            wide = torch.nn.functional.silu(gate) * up
            z = wide @ weights.down_EDI[expert].float().t()
            if table is not None:
                z += _delta(wide, table, slot, 3 * expert + 2)
            out_TD.index_add_(0, t, z * routing.weights_TX[t, chosen][:, None])
    return out_TD


def _delta(x_GK: Tensor, table: SlotTable, slot: int, index: int) -> Tensor:
    weights = table.weights(slot, index)
    assert weights is not None
    return weights.scaling * x_GK @ weights.a.float().t() @ weights.b.float().t()


def _distance(out: Tensor, expected: Tensor) -> float:
    return ((out.float() - expected).norm() / expected.norm()).item()


def _checked(job: Job) -> tuple[Job, float, str]:
    """In a process of its own."""
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        kind, arguments = job
        return job, {"tile": check_tile, "case": check_case, "shared": check_shared}[kind](*arguments), ""
    except Exception as error:
        return job, math.nan, str(error)[-300:]


def check_kernels(jobs: Iterable[Job]) -> Iterator[tuple[Job, Check]]:
    """All at once, which also leaves their kernels compiled for whoever comes next."""
    with ProcessPoolExecutor(_PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job, error, said in pool.map(_checked, jobs):
            yield job, Check(name=f"experts bfloat16, {job[0]} {job[1]} {said}", error=error, limit=LIMIT)


def run_all() -> Iterator[Check]:
    """All checks, as they end."""
    jobs: list[Job] = [("case", (0, tokens, 1)) for tokens in (1, 2, 4, 8, 32, 128, 1024)]
    jobs += [
        ("case", (rank, tokens, adapters))
        for tokens, adapters in ((1, 1), (8, 4), (32, 4), (128, 4), (1024, 1))
        for rank in (16, 64)
    ]
    jobs += [("shared", (rank, 1024, 4)) for rank in (16, 64)]
    yield from (check for _, check in check_kernels(jobs))
    yield from check_engine(
        tiny_models.EXPERTS, ranks=(8, 16, 64, 24, 8, 16), rigs=("overlapping", "without graphs")
    )


def main() -> None:
    report(run_all())


if __name__ == "__main__":
    main()
