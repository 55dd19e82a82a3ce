"""How our kernels are launched: found by a key of our own, overlapping, and noted instead in a rehearsal.

Programmatic dependent launch lets a kernel's programs start while the kernel before it still ends. One
launched with `overlapping` calls `wait_for_inputs` in every program before it touches what other kernels read
or write; until then it may load weights, which nothing writes. That the wait comes in every program, also in
those with nothing to do, is what orders a kernel after the one before the last.
"""

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.jit import JITFunction

log = logging.getLogger(__name__)

_WORTH_TELLING = 0.05
"""Seconds; to find what was compiled before takes less."""


class Variant(NamedTuple):
    """What a kernel is compiled for, as one launch had it: each tensor's dtype and whether its address is a
    multiple of 16, numbers that stand for others of their kind, constants and options.
    """

    module: str
    kernel: str
    dtypes: tuple[torch.dtype, ...]
    aligned: tuple[bool, ...]
    numbers: tuple[float, ...]
    named: tuple[tuple[str, Any], ...]


@dataclass(slots=True, kw_only=True)
class Rehearsal:
    """Launches that were noted instead of made, each variant once, in the order in which they came."""

    overlaps: bool
    variants: dict[Any, Variant] = field(default_factory=dict)


_rehearsal: Rehearsal | None = None


@contextmanager
def rehearsing(*, overlaps: bool) -> Iterator[Rehearsal]:
    """Nothing is launched meanwhile, so that tensors may be of the device meta. Of a whole process."""
    global _rehearsal
    _rehearsal = rehearsal = Rehearsal(overlaps=overlaps)
    try:
        yield rehearsal
    finally:
        _rehearsal = None


@cache
def overlaps() -> bool:
    """Whether the GPU can: compute capability 9.0 and up."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def overlapping() -> dict[str, Any]:
    """Launch options, and the kernel's flag `PDL`."""
    can = overlaps() if _rehearsal is None else _rehearsal.overlaps
    return {"PDL": True, "launch_pdl": True} if can else {"PDL": False}


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
        # While one thread loads a kernel's code, Triton would have another launch what is not there yet.
        self._loading = threading.Lock()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **named: Any) -> None:
            tensors, numbers = args[: self._tensors], args[self._tensors :]
            addresses = [*map(Tensor.data_ptr, tensors)]
            variant = (
                *named,
                *named.values(),
                *map(_dtype, tensors),
                *[address & 15 == 0 for address in addresses],
                *[kind(number) for kind, number in zip(self._kinds, numbers, strict=True)],
            )
            if _rehearsal is not None:
                self._note(variant, tensors, addresses, numbers, named)
                return
            driver: Any = triton.runtime.driver.active
            device = driver.get_current_device()
            found = self._compiled.get((device, variant))
            if found is None:
                begun = time.perf_counter()
                with self._loading:
                    compiled = self.jit[grid](*args, **named)
                    self._keep((device, variant), compiled, named)
                if (seconds := time.perf_counter() - begun) > _WORTH_TELLING:
                    name = self.jit.__name__
                    log.info("%s was compiled in %.2f s when it was to be launched: %s", name, seconds, named)
                return
            run, function, metadata, constants = found
            x, y, z = (*grid, 1, 1)[:3]
            stream = driver.get_current_stream(device)
            run(x, y, z, stream, function, metadata, None, None, None, *addresses, *numbers, *constants)

        return launch

    def prepare(self, variant: Variant) -> Any:
        """Compile a variant of this kernel, or find what was compiled before; launches nothing. Returns what
        Triton makes of it.
        """
        tensors = [*map(_Stand, variant.dtypes, variant.aligned)]
        return self.jit.run(*tensors, *variant.numbers, grid=(1,), warmup=True, **dict(variant.named))

    def load(self, variant: Variant) -> None:
        """Have a variant ready to be launched on the current device."""
        named = dict(variant.named)
        key = (
            *named,
            *named.values(),
            *variant.dtypes,
            *variant.aligned,
            *[kind(number) for kind, number in zip(self._kinds, variant.numbers, strict=True)],
        )
        driver: Any = triton.runtime.driver.active
        device = driver.get_current_device()
        with self._loading:
            if (device, key) not in self._compiled:
                self._keep((device, key), self.prepare(variant), named)

    def _keep(self, key: Any, compiled: Any, named: dict[str, Any]) -> None:
        constants = [named[name] for name in self._constants]
        run = compiled.run  # loads the code, where that is still to be done
        self._compiled[key] = run, compiled.function, compiled.packed_metadata, constants

    def _note(
        self, key: Any, tensors: Any, addresses: list[int], numbers: Any, named: dict[str, Any]
    ) -> None:
        assert _rehearsal is not None
        name = self.jit.__module__, self.jit.__name__
        if (name, key) not in _rehearsal.variants:
            _rehearsal.variants[name, key] = Variant(
                *name,
                dtypes=tuple(tensor.dtype for tensor in tensors),
                aligned=tuple(address & 15 == 0 for address in addresses),
                numbers=tuple(numbers),
                named=tuple(named.items()),
            )


class _Stand:
    """In place of a tensor, for what Triton asks of one before it compiles."""

    def __init__(self, dtype: torch.dtype, aligned: bool) -> None:
        self.dtype = dtype
        self._address = 0 if aligned else dtype.itemsize

    def data_ptr(self) -> int:
        return self._address


def find(variant: Variant) -> Quick:
    """The kernel that a variant is of."""
    found = getattr(importlib.import_module(variant.module), variant.kernel)
    assert isinstance(found, Quick), f"{variant.module}.{variant.kernel} is not launched by Quick"
    return found


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
