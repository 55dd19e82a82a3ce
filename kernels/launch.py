"""Programmatic dependent launch: a kernel's programs may start while the kernel before it still ends.

A kernel launched with `overlapping` calls `wait_for_inputs` in every program before it touches what other
kernels read or write; until then it may load weights, which nothing writes. That the wait comes in every
program, also in those with nothing to do, is what orders a kernel after the one before the last.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


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
