"""From settings to the parts that compute: reads the model folder, allocates, and touches no network."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from executor.adapters.pool import PlainPool, Pool
from executor.arithmetic.paced_runner import PacedRunner
from executor.arithmetic.runner import ArithmeticRunner
from executor.base.identity import base_digest
from executor.base.kv_sizing import (
    CudaMemory,
    LargestStep,
    allocate_from_growing_ranges,
    measured_pages,
)
from executor.config import GIB, ExecutorConfig
from executor.control.config import SchedulerConfig
from executor.control.loader import UNIT_BYTES
from executor.control.runner import Runner
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from executor.model.kv_cache import page_bytes
from executor.model.layout import build_layout
from executor.model.slots import AdapterPool
from executor.model.weights import DTYPES, Progress, load_parameters
from executor.rehearsal.plans import Limits
from executor.runner import RunnerConfig, TorchRunner
from lorikeet.v1 import layout_pb2
from rpc.digests import file_digest
from rpc.tuning import usable_cores

if TYPE_CHECKING:
    from executor.rehearsal.ahead import Ahead

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model, ready to run."""

    model: ModelConfig
    scheduling: SchedulerConfig
    runner: Runner[Any]
    pool: Pool
    layout: layout_pb2.Layout
    tokenizer_digest: str
    rest: Callable[[], bool]
    """What the runner does while there are no steps."""


class _Parts(NamedTuple):
    """As in `Base`."""

    scheduling: SchedulerConfig
    runner: Runner[Any]
    pool: Pool
    rest: Callable[[], bool]


def _nothing() -> bool:
    return False


def _go_on() -> None:
    pass


def build_base(config: ExecutorConfig, progress: Progress, check: Callable[[], None] = _go_on) -> Base:
    """Loads a model. `progress` gets bytes done and bytes in all; what `check` raises ends the work.

    Raises ValueError or OSError, naming the file or setting, when it cannot be served.
    """

    def read(done: int, total: int) -> None:
        check()
        progress(done, total)

    heed_quota()
    model = ModelConfig.load(config.model_dir)
    if model.unrecognised:
        log.warning("config.json says what nobody here reads: %s", ", ".join(model.unrecognised))
    tokenizer = config.model_dir / "tokenizer.json"
    if not tokenizer.is_file():
        raise ValueError(f"{config.model_dir} holds no tokenizer.json: frontends and executor both need it")
    dtype = DTYPES[config.dtype]
    scheduling, runner, pool, rest = (
        _torch(config, model, read, check) if config.runner == "torch" else _arithmetic(config, model)
    )
    layout = build_layout(
        model,
        base_digest=base_digest(config.model_dir),
        base_name=config.served_name,
        dtype=dtype,
        max_rank=config.max_lora_rank,
        max_pack_bytes=scheduling.pool_units * UNIT_BYTES,
    )
    return Base(
        model=model,
        scheduling=scheduling,
        runner=runner,
        pool=pool,
        layout=layout,
        tokenizer_digest=file_digest(tokenizer),
        rest=rest,
    )


def heed_quota() -> None:
    """Leaves PyTorch no more threads than a container's quota has processors; OpenMP counts the machine's.

    Threads beyond those wait for each other, in the middle of a product, for the rest of a period. A number
    that was asked for stays.
    """
    if not os.environ.get("OMP_NUM_THREADS") and (cores := usable_cores()) < torch.get_num_threads():
        torch.set_num_threads(cores)


def _scheduling(config: ExecutorConfig, model: ModelConfig, pages: int) -> SchedulerConfig:
    adapters = bool(config.store)
    page = page_bytes(model, page_size=config.page_size, dtype=DTYPES[config.dtype])
    return SchedulerConfig(
        context=model.context_length,
        pages=pages,
        page_size=config.page_size,
        host_pages=config.kv_host_bytes // page,
        max_running=config.max_running,
        max_waiting=config.max_waiting,
        max_step_tokens=config.max_step_tokens,
        adapter_slots=config.adapter_slots if adapters else 0,
        pool_units=config.adapter_pool_bytes // UNIT_BYTES if adapters else 0,
        queue_policy=config.queue_policy,
        pool_eviction=config.pool_eviction,
        eos_token_ids=model.eos_ids,
    )


def _given_pages(config: ExecutorConfig, model: ModelConfig) -> int:
    """As many pages as the settings say, but no more than all rows can ever fill."""
    if config.kv_pages is not None:
        return config.kv_pages
    one = page_bytes(model, page_size=config.page_size, dtype=DTYPES[config.dtype])
    budget = GIB if config.kv_bytes is None else config.kv_bytes
    if budget < one:
        raise ValueError(f"kv_bytes is {budget}, but one KV page takes {one}: give more")
    return min(budget // one, _usable_pages(config, model))


def _usable_pages(config: ExecutorConfig, model: ModelConfig) -> int:
    return config.max_running * -(-model.context_length // config.page_size)


def _torch(
    config: ExecutorConfig, model: ModelConfig, progress: Progress, check: Callable[[], None]
) -> _Parts:
    dtype, device = DTYPES[config.dtype], torch.device(config.device)
    if device.type == "cuda":
        _check_gpu(config, model)
    # Mistakes in the settings are told before weights are read.
    scheduling = _scheduling(config, model, 1 if config.measures_kv else _given_pages(config, model))
    ahead = None
    if device.type == "cuda":
        allocate_from_growing_ranges()
        ahead = _compile_ahead(config, model, scheduling)
    with _timed("reading the weights"):
        if config.load_format == "dummy":
            parameters = dummy_parameters(model, dtype=dtype, device=device)
        else:
            parameters = load_parameters(
                config.model_dir, model, dtype=dtype, device=device, progress=progress
            )
    pool = AdapterPool(
        model,
        units=scheduling.pool_units,
        slots=scheduling.adapter_slots,
        dtype=dtype,
        device=device,
        parameters=parameters,
        deterministic=config.deterministic,
    )

    def make_runner(pages: int, context: int, host_pages: int) -> TorchRunner:
        runner_config = RunnerConfig(
            max_rows=config.max_running,
            pages=pages,
            page_size=config.page_size,
            max_context=context,
            host_pages=host_pages,
            deterministic=config.deterministic,
            max_rank=config.max_lora_rank if scheduling.adapter_slots else 0,
        )
        return TorchRunner(model, parameters, pool=pool, config=runner_config)

    # To record without kernels would compile them while requests wait.
    can_rest = ahead is not None and ahead.wait(check)
    if config.measures_kv:
        # One page of host memory brings all that its copies need of the GPU's.
        host_pages = min(1, scheduling.host_pages)
        with _timed("sizing the KV cache"):
            pages = _measured_pages(
                config,
                model,
                scheduling,
                lambda pages: make_runner(pages, model.context_length, host_pages),
                pool,
            )
        scheduling = _scheduling(config, model, pages)
    with _timed("making the runner"):
        runner = make_runner(scheduling.pages, scheduling.longest, scheduling.host_pages)
    return _Parts(scheduling, runner, pool, runner.rest if can_rest else _nothing)


def _check_gpu(config: ExecutorConfig, model: ModelConfig) -> None:
    if not torch.cuda.is_available():
        raise ValueError(
            "device is 'cuda', but torch finds no GPU: install a torch built for CUDA and its driver, "
            "or use device 'cpu'"
        )
    if config.deterministic and model.experts is not None:
        raise ValueError(
            "deterministic is set, but products of experts on a GPU depend on the batch: leave it out"
        )


@contextmanager
def _timed(what: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    log.info("%s took %.1f s", what, time.monotonic() - begun)


def _limits(scheduling: SchedulerConfig) -> Limits:
    return Limits(
        rows=scheduling.max_running,
        tokens=scheduling.max_step_tokens,
        context=scheduling.context,
        slots=scheduling.adapter_slots,
        page_size=scheduling.page_size,
    )


def _compile_ahead(config: ExecutorConfig, model: ModelConfig, scheduling: SchedulerConfig) -> "Ahead":
    from executor.rehearsal.ahead import Ahead, ask_for_this_gpu  # imports Triton
    from executor.rehearsal.kept import keep_what_is_compiled
    from executor.rehearsal.stage import Cast

    cast = Cast(
        model=model,
        dtype=DTYPES[config.dtype],
        limits=_limits(scheduling),
        units=scheduling.pool_units,
        max_rank=config.max_lora_rank,
        deterministic=config.deterministic,
    )
    keep_what_is_compiled()
    return Ahead(ask_for_this_gpu(cast))


def _measured_pages(
    config: ExecutorConfig,
    model: ModelConfig,
    scheduling: SchedulerConfig,
    make_runner: Callable[[int], TorchRunner],
    pool: AdapterPool,
) -> int:
    return measured_pages(
        make_runner,
        pool=pool,
        max_rank=config.max_lora_rank,
        largest=LargestStep(_limits(scheduling)),
        memory=CudaMemory(),
        utilization=config.gpu_memory_utilization,
        page_bytes=page_bytes(model, page_size=config.page_size, dtype=DTYPES[config.dtype]),
        most=_usable_pages(config, model),
    )


def _arithmetic(config: ExecutorConfig, model: ModelConfig) -> _Parts:
    scheduling = _scheduling(config, model, _given_pages(config, model))
    runner = ArithmeticRunner(
        rows=scheduling.max_running,
        columns=-(-scheduling.longest // scheduling.page_size),
        pages=scheduling.pages,
        host_pages=scheduling.host_pages,
        page_size=scheduling.page_size,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_ids,
        check=False,
    )
    pool = PlainPool(units=scheduling.pool_units)
    seconds = config.arithmetic_step_seconds
    return _Parts(scheduling, PacedRunner(runner, seconds) if seconds else runner, pool, _nothing)
