"""Compiles variants of kernels side by side, in processes that need no GPU. What they leave in Triton's cache
on the disk is found by whoever launches these kernels or loads them, as `launch.Quick.load` does.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.pool import AsyncResult
from typing import NamedTuple, Self

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as cuda

from kernels.launch import Variant, find


class Target(NamedTuple):
    """The GPU to compile for, as Triton names it."""

    backend: str
    arch: int
    warp_size: int


class Compiled(NamedTuple):
    """A variant that is in Triton's cache, after so many seconds; `error` says why it is not."""

    variant: Variant
    seconds: float
    error: str = ""


class Compilers:
    """A pool of processes, for the length of a `with`. They are forks: the process that makes them has one
    thread and no CUDA.
    """

    def __init__(self, target: Target, *, processes: int) -> None:
        self._pool = multiprocessing.get_context("fork").Pool(processes, _begin, (target,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    def compile(self, variant: Variant, done: Callable[[Compiled], None]) -> "AsyncResult[Compiled]":
        """Begin with a variant; `done` is called on another thread."""

        def failed(error: BaseException) -> None:
            done(Compiled(variant, 0.0, f"{type(error).__name__}: {error}"))

        return self._pool.apply_async(_compile, (variant,), callback=done, error_callback=failed)


class _NoDevice:
    """In place of a driver, for compilers: says what there will be."""

    def __init__(self, target: Target) -> None:
        self._target = GPUTarget(*target)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _begin(target: Target) -> None:
    os.nice(10)
    triton.runtime.driver.set_active(_NoDevice(target))  # pyright: ignore[reportArgumentType]


def _compile(variant: Variant) -> Compiled:
    begun = time.perf_counter()
    try:
        compiled = find(variant).prepare(variant)
        if hasattr(cuda, "make_launcher"):
            # Triton up to 3.6 has a launcher written in C for each signature, and keeps that, too.
            with suppress(Exception):
                cuda.CudaLauncher(compiled.src, compiled.metadata)
    except Exception as error:
        return Compiled(variant, time.perf_counter() - begun, f"{type(error).__name__}: {error}")
    return Compiled(variant, time.perf_counter() - begun)
