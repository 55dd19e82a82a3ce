"""Programmatic dependent launch: a kernel's programs may start while the kernel before it still ends.

A kernel launched with `overlapping` calls `wait_for_inputs` in every program before it touches what other
kernels read or write; until then it may load weights, which nothing writes. That the wait comes in every
program, also in those with nothing to do, is what orders a kernel after the one before the last.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.jit import JITFunction


@cache
def overlaps() -> bool:
    """Whether the GPU can: compute capability 9.0 and up."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def overlapping() -> dict[str, Any]:
    """Launch options, and the kernel's flag `PDL`."""
    return {"PDL": True, "launch_pdl": True} if overlaps() else {"PDL": False}


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Until the kernels before this one have ended; the next kernel's programs may start from here on."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


class Quick:
    """A kernel that is launched as Triton's own are, `kernel[grid](*tensors, *numbers, NAME=...)`, in half of
    the host's time: what has been compiled is found by what its code depends on, and gets addresses.

    Arguments without a default come by place, constants and options by name. Those of tensors are called
    `..._ptr` and come first; every one of them is on the current device, which nothing checks but the first
    launch.
    """

    def __init__(self, kernel: "JITFunction[Any]") -> None:
        self.jit = kernel
        free = [param for param in kernel.params if not param.is_constexpr]
        numbers = [param for param in free if not param.name.endswith("_ptr")]
        tensors = [param for param in free if param.name.endswith("_ptr")]
        constants = [param for param in kernel.params if param.is_constexpr]
        if [*kernel.params] != tensors + numbers + constants:
            raise ValueError(f"{kernel.__name__}: tensors must come first and constants last")
        self._tensors = len(tensors)
        self._kinds = [_width if param.do_not_specialize else _kind for param in numbers]
        self._constants = [param.name for param in constants]
        self._compiled: dict[Any, tuple[Any, ...]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **named: Any) -> None:
            tensors, numbers = args[: self._tensors], args[self._tensors :]
            addresses = [*map(Tensor.data_ptr, tensors)]
            driver: Any = triton.runtime.driver.active
            device = driver.get_current_device()
            key = (
                device,
                *named,
                *named.values(),
                *map(_dtype, tensors),
                *[address & 15 == 0 for address in addresses],
                *[kind(number) for kind, number in zip(self._kinds, numbers, strict=True)],
            )
            found = self._compiled.get(key)
            if found is None:
                compiled = self.jit[grid](*args, **named)
                constants = [named[name] for name in self._constants]
                self._compiled[key] = compiled.run, compiled.function, compiled.packed_metadata, constants
                return
            run, function, metadata, constants = found
            x, y, z = (*grid, 1, 1)[:3]
            stream = driver.get_current_stream(device)
            run(x, y, z, stream, function, metadata, None, None, None, *addresses, *numbers, *constants)

        return launch


def quick(kernel: Any) -> Any:
    """Decorates a kernel. In Triton's interpreter it stays what it is."""
    return Quick(kernel) if isinstance(kernel, JITFunction) else kernel


_dtype = attrgetter("dtype")


@lru_cache(maxsize=4096, typed=True)
def _kind(number: float) -> Any:
    """What Triton compiles different code for: type, width, and of integers 1 and multiples of 16."""
    return (_width(number), number == 1, number % 16 == 0) if type(number) is int else _width(number)


@lru_cache(maxsize=4096, typed=True)
def _width(number: float) -> Any:
    return not -(1 << 31) <= number < 1 << 31 if type(number) is int else type(number)
