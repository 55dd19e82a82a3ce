"""What must hold of products of few tokens on a GPU, in the tiles that serve there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kernels.fused import gpu, reference

_TOKENS = (1, 5, 8, 13, 16, 31, 32, 47, 64, 100, 128)
_FEW_TOKENS = (1, 2, 13, 47)
_SHAPES = ((6144, 4096), (4096, 4096), (24_576, 4096), (4096, 12_288), (151_936, 4096))
_ODD_SHAPES = ((1000, 96), (154, 1536))


def run_all() -> Iterator[tuple[str, torch.dtype, float]]:
    """Name, dtype and largest relative error of each case."""
    for outputs, inputs in _SHAPES:
        yield from _check(torch.bfloat16, _TOKENS, outputs, inputs, biased=False, gated=outputs == 24_576)
    for outputs, inputs in _ODD_SHAPES:
        yield from _check(torch.float16, _FEW_TOKENS, outputs, inputs, biased=True, gated=True)


def _check(
    dtype: torch.dtype, sizes: tuple[int, ...], outputs: int, inputs: int, *, biased: bool, gated: bool
) -> Iterator[tuple[str, torch.dtype, float]]:
    weight = (torch.randn(outputs, inputs, device="cuda") * inputs**-0.5).to(dtype)
    bias = torch.randn(outputs, device="cuda").to(dtype) if biased else None
    for tokens in sizes:
        x = torch.randn(tokens, inputs, device="cuda").to(dtype)
        expected = reference.linear(x.float(), weight.float(), bias.float() if bias is not None else None)
        name = f"{tokens} x {inputs} -> {outputs}"
        yield f"linear {name}", dtype, _error(lambda x=x: gpu.linear(x, weight, bias), expected)
        parts = _error(lambda x=x: reference.whole(gpu.linear_to_add(x, weight, bias), dtype), expected)
        yield f"linear to add {name}", dtype, parts
        if gated:
            both = reference.silu_mul(expected)
            yield f"gated {name}", dtype, _error(lambda x=x: gpu.linear_silu_mul(x, weight, bias), both)


def _error(run: Callable[[], Tensor], expected: Tensor) -> float:
    """Twice, into memory that was NaN; infinite where the two differ in a bit."""
    found = []
    for _ in range(2):
        freed = torch.full((16 << 20,), float("nan"), device=expected.device)
        del freed
        found.append(run())
    if not torch.equal(*found):
        return float("inf")
    return ((found[0].float() - expected).norm() / expected.norm()).item()
