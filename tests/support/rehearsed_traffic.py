"""Random steps, after a rehearsal of all kinds of steps: prints the variants of kernels that the rehearsal
did not foresee, and a step that launches each. Run in a process without the interpreter.

python -m tests.support.rehearsed_traffic
"""

import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import executor.model.decoder
from executor.control.loader import UNIT_BYTES
from executor.model import projection
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from executor.model.slots import AdapterPool
from executor.rehearsal.plans import Limits, Row, step
from executor.rehearsal.stage import Cast, Stage
from executor.runner import RunnerConfig, TorchRunner
from kernels.fused import reference
from kernels.launch import rehearsing
from tests.support import tiny_models
from tests.support.engine_rig import PAGE_SIZE, bring, random_pack

WIDE = {
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "use_sliding_window": False,
    "sliding_window": None,
}
CASES = (
    # shape, ranks of plain adapters and of those with all forms, deterministic, rows, tokens
    (tiny_models.DENSE | WIDE, (8,), (16,), False, 40, 2100),
    (tiny_models.EXPERTS, (8, 24), (), False, 4, 120),
    (tiny_models.DENSE, (8,), (8,), True, 4, 80),
)
STEPS = 100


def make_runners(cast: Cast, ranks: tuple[int, ...], formed: tuple[int, ...]) -> list[TorchRunner]:
    """With graphs and without, on the CPU, where tensors have addresses; slots show adapters in turns."""
    model, dtype = cast.model, cast.dtype
    parameters = dummy_parameters(model, dtype=dtype, device=torch.device("cpu"))
    packs = [random_pack(model, rank=rank, dtype=dtype, forms=False) for rank in ranks]
    packs += [random_pack(model, rank=rank, dtype=dtype, forms=True) for rank in formed]
    offsets = np.cumsum([0, *(pack.manifest.total_bytes // UNIT_BYTES for pack in packs)]).tolist()
    pool = AdapterPool(
        model,
        units=offsets[-1],
        slots=cast.limits.slots,
        dtype=dtype,
        triton=True,
        parameters=parameters,
        deterministic=cast.deterministic,
    )
    for slot in range(cast.limits.slots):
        pool.table.clear_row(slot)  # where there are no packs
    for number, pack in enumerate(packs):
        row = bring(pool, number % cast.limits.slots, offsets[number], pack)
        # The last says that experts share, which changes what is launched whether or not they do.
        row = row._replace(shares=model.experts is not None and pack is packs[-1])
        for slot in range(number, cast.limits.slots, len(packs)):
            pool.table.show(slot, row)
    config = RunnerConfig(
        max_rows=cast.limits.rows,
        pages=100,
        page_size=PAGE_SIZE,
        max_context=cast.limits.context - 40,  # as where memory is short
        deterministic=cast.deterministic,
    )
    by_kernels = RunnerConfig(
        **{name: getattr(config, name) for name in config.__slots__} | {"graphs": False}
    )
    return [TorchRunner(model, parameters, pool=pool, config=config) for config in (config, by_kernels)]


def traffic(limits: Limits, draw: random.Random) -> Iterator[list[Row]]:
    """Steps that decode, that are prompts, and mixed ones, of the base, of one adapter and of many."""
    for _ in range(STEPS):
        count = draw.randint(1, limits.rows)
        slots = draw.choice((range(-1, 0), range(1), range(-1, 1), range(-1, limits.slots)))
        longest = draw.choice((1, 1, 20, 70, 1 + 2 * limits.tokens // count, limits.tokens))
        rows, left = [], limits.tokens
        for number in range(count):
            length = 1 if draw.random() < 0.5 else draw.randint(1, min(left, longest, limits.context // 2))
            start = draw.randint(0, limits.context // 2 - 50)
            rows.append(Row(length, start=start, slot=slots[number % len(slots)]))
            left -= length
            if not left:
                break
        yield rows


def unforeseen(case: Any, seed: int) -> Iterator[str]:
    shape, ranks, formed, deterministic, rows, tokens = case
    limits = Limits(rows=rows, tokens=tokens, context=2048, slots=max(6, rows - 2), page_size=PAGE_SIZE)
    cast = Cast(
        model=ModelConfig.parse(shape, {}),
        dtype=torch.bfloat16,
        limits=limits,
        units=1 << 20,
        max_rank=max(*ranks, *formed, 0),
        deterministic=deterministic,
    )
    runners = make_runners(cast, ranks, formed)
    with rehearsing(overlaps=False) as rehearsal:
        stage = Stage(cast)
        for _ in (*stage.usual(), *stage.seldom()):
            pass
    yield from stage.failures
    draw = random.Random(seed)
    for number, spans in enumerate(traffic(limits, draw)):
        with rehearsing(overlaps=False) as met:
            runners[number % 2].rehearse(step(spans))
        for key in met.variants.keys() - rehearsal.variants.keys():
            rehearsal.variants[key] = met.variants[key]
            how = "kernel by kernel" if number % 2 else "by graphs"
            yield f"{met.variants[key]} in a step of {len(spans)} rows {how}: {spans[:8]}"


def main() -> None:
    # Torch computes nothing; tokens, and the rows that they are kept for, are what was in memory.
    torch.Tensor.index_copy_ = lambda self, dim, index, source: self
    executor.model.decoder.embedding = lambda ids, table: table.new_empty(len(ids), table.shape[1])
    reference.linear = lambda x, weight, bias, out=None: (
        x.new_empty(len(x), len(weight)) if out is None else out
    )
    projection.add_product = lambda y_TN, *_: y_TN
    for case in CASES:
        for missed in unforeseen(case, int(sys.argv[1]) if len(sys.argv) > 1 else 0):
            print(missed)


if __name__ == "__main__":
    main()
