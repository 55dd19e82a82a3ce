"""Programmatic dependent launch: a kernel's programs may start while the kernel before it still ends.

A kernel launched with `overlapping` calls `wait_for_inputs` in every program before it touches what other
kernels read or write; until then it may load weights, which nothing writes. That the wait comes in every
program, also in those with nothing to do, is what orders a kernel after the one before the last.
"""

from collections.abc import Callable
from functools import cache
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
    """A kernel that is launched as Triton's own are, `kernel[grid](*tensors_and_numbers, NAME=...)`, in less
    of the host's time: what has been compiled is found by what its code depends on.

    Arguments without a default come by place, constants and options by name.
    """

    def __init__(self, kernel: "JITFunction[Any]") -> None:
        self.jit = kernel
        free = [param for param in kernel.params if not param.is_constexpr]
        self._constants = [param.name for param in kernel.params if param.is_constexpr]
        self._fixed = [param.do_not_specialize for param in free]
        if [param.name for param in kernel.params] != [param.name for param in free] + self._constants:
            raise ValueError(f"{kernel.__name__}: constants must come last")
        self._compiled: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **named: Any) -> None:
            key = (
                tuple(map(_specialisation, args, self._fixed)),
                tuple(named.items()),
                torch.cuda.current_device(),
            )
            found = self._compiled.get(key)
            if found is None:
                compiled = self.jit[grid](*args, **named)
                constants = tuple(named[name] for name in self._constants)
                self._compiled[key] = compiled, constants
                return
            compiled, constants = found
            compiled[(*grid, 1, 1)](*args, *constants)

        return launch


def quick(kernel: Any) -> Any:
    """Decorates a kernel. In Triton's interpreter it stays what it is."""
    return Quick(kernel) if isinstance(kernel, JITFunction) else kernel


def _specialisation(argument: Any, fixed: bool) -> Any:
    """What Triton compiles different code for: dtype, alignment, numbers 1 and multiples of 16."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if type(argument) is int:
        wide = not -(1 << 31) <= argument < 1 << 31
        return wide if fixed else (wide, argument == 1, argument % 16 == 0)
    return type(argument)
