"""Launches the kernels of all kinds of steps as on a GPU, but for compiling and computing; prints those that
no step had. Run in a process without the interpreter, which takes what `kernels.launch.Quick` does not.

python -m tests.support.kernel_launches
"""

import sys
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

import executor.model.decoder
from executor.control.loader import UNIT_BYTES
from executor.control.plan import RowInstall, StepPlan
from executor.control.request import SamplingParams, no_ids
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from executor.model.slots import AdapterPool
from executor.runner import RunnerConfig, TorchRunner
from kernels.fused import reference
from kernels.moe_lora.fused import MOST_RANK
from kernels.sampling import cut, gpu
from tests.support import tiny_models
from tests.support.engine_rig import PAGE_SIZE, bring, random_pack

ROWS, COLUMNS = 128, 20
SHARED = 3
"""Slot of an adapter whose experts share lora_b, as all of its slices do."""
MANY = 64
"""Further slots, that show it as well."""
OPTIONS = {"num_warps", "num_stages", "launch_pdl", "maxnreg"}
LAUNCHED: set[str] = set()


class Compiled:
    """What a kernel was compiled to."""

    function = 1
    packed_metadata = ()

    def __init__(self, kernel: "JITFunction[Any]") -> None:
        self._kernel = kernel

    def run(self, *launch: Any) -> None:
        """Grid, stream, function, metadata and three hooks, then the arguments: addresses and numbers."""
        arguments = launch[9:]
        assert len(arguments) == len(self._kernel.params), self._kernel.__name__
        for param, argument in zip(self._kernel.params, arguments, strict=True):
            assert not isinstance(argument, Tensor), (self._kernel.__name__, param.name)
        LAUNCHED.add(f"{self._kernel.module}.{self._kernel.__name__}")


def compile_nothing(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> Any:
    """In place of `JITFunction.run`."""
    constants = {param.name for param in self.params if param.is_constexpr}
    assert len(args) == len(self.params) - len(constants), self.__name__
    assert constants <= set(named) <= constants | OPTIONS, (self.__name__, set(named) ^ constants)
    return Compiled(self)


class Driver:
    @staticmethod
    def get_current_device() -> int:
        return 0

    @staticmethod
    def get_current_stream(device: int) -> int:
        return 0


def make_runner(shape: dict[str, Any], *, deterministic: bool) -> TorchRunner:
    model, dtype = ModelConfig.parse(shape, {}), torch.bfloat16
    parameters = dummy_parameters(model, dtype=dtype, device=torch.device("cpu"))
    packs = [
        random_pack(model, rank=rank, dtype=dtype, forms=forms)
        for rank, forms in ((16, False), (16, True), (MOST_RANK + 8, False), (MOST_RANK, False))
    ]
    for place in packs[SHARED].manifest.slices:
        place.b_offset = 0
    offsets = np.cumsum([0, *(pack.manifest.total_bytes // UNIT_BYTES for pack in packs)]).tolist()
    pool = AdapterPool(
        model,
        units=offsets[-1],
        slots=len(packs) + MANY,
        dtype=dtype,
        triton=True,
        parameters=parameters,
        deterministic=deterministic,
    )
    for slot in range(len(packs) + MANY):
        shown = min(slot, SHARED)
        pool.install_slot(slot, bring(pool, slot, offsets[shown], packs[shown]))
    config = RunnerConfig(
        max_rows=ROWS,
        pages=ROWS * COLUMNS,
        page_size=PAGE_SIZE,
        max_context=COLUMNS * PAGE_SIZE,
        deterministic=deterministic,
    )
    return TorchRunner(model, parameters, pool=pool, config=config)


def step(runner: TorchRunner, lengths: list[int], slots: list[int]) -> None:
    """Rows that feed so many tokens each, after one page."""
    rows, total = np.arange(len(lengths), dtype=np.int32), sum(lengths)
    install = SamplingParams(max_tokens=2)
    plan = StepPlan(
        step=0,
        installs=tuple(
            RowInstall(row=row, sampling=install, prompt_ids=np.zeros(9, np.int32), emitted_ids=no_ids())
            for row in rows.tolist()
        ),
        rows=rows,
        query_splits=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        input_ids=np.zeros(total, np.int32),
        start_positions=np.full(len(rows), PAGE_SIZE, np.int32),
        slots=np.sort(slots).astype(np.int32),
        samples=np.ones(len(rows), np.bool_),
        page_rows=np.empty(0, np.int32),
        page_columns=np.empty(0, np.int32),
        page_ids=np.empty(0, np.int32),
    )
    runner.collect(runner.launch(plan))


def sample() -> None:
    logits, numbers = torch.zeros(2, 100), torch.ones(2, dtype=torch.int64)
    for _ in range(2):
        gpu.draw(logits, numbers, numbers)
        gpu.logsumexp(logits)
        cut.keep_top_k(logits, numbers)
        cut.keep_top_p(logits, numbers.float())


def all_kernels() -> set[str]:
    """Of the modules that steps have imported; one that is not `quick` counts as never launched."""
    modules = [module for name, module in sys.modules.items() if name.startswith("kernels.")]
    values = [getattr(value, "jit", value) for module in modules for value in vars(module).values()]
    functions = [value for value in values if isinstance(value, JITFunction)]
    return {f"{jit.module}.{jit.__name__}" for jit in functions if jit.__name__.endswith("_kernel")}


def main() -> None:
    triton.runtime.driver.set_active(Driver())  # pyright: ignore[reportArgumentType]
    JITFunction.run = compile_nothing
    # What kernels would have written torch takes for indexes.
    torch.empty = torch.zeros
    # Neither are torch's own products, and tokens are what was in memory.
    executor.model.decoder.embedding = lambda ids, table: table.new_empty(len(ids), table.shape[1])
    reference.linear = lambda x, weight, bias, out=None: (
        x.new_empty(len(x), len(weight)) if out is None else out
    )
    with torch.inference_mode():
        sample()
        for shape in (tiny_models.DENSE | {"intermediate_size": 4096}, tiny_models.EXPERTS):
            for deterministic in (False, True):
                runner = make_runner(shape, deterministic=deterministic)
                for adapters in (1, 3):
                    for lengths in ([1], [1] * 8, [1] * 30, [1] * 100, [1] * 20 + [90], [300]):
                        slots = [row % (adapters + 1) - 1 for row in range(len(lengths))]
                        for used in ([-1] * len(slots), slots if len(slots) > 1 else [adapters - 1]):
                            step(runner, lengths, used)
                step(runner, [300], [SHARED])
                step(runner, [1] * 100, [SHARED + 1 + row % MANY for row in range(100)])
    print("\n".join(sorted(all_kernels() - LAUNCHED)))


if __name__ == "__main__":
    main()
