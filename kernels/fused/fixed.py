"""The deterministic mode's steps: those of `gpu`, which take each row by itself, but for the products."""

from torch import Tensor

from kernels.fused.gpu import add_norm, greedy, rotate_store, silu_mul
from kernels.linear.fixed import multiply

__all__ = ["add_norm", "greedy", "linear", "linear_silu_mul", "linear_to_add", "rotate_store", "silu_mul"]


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, out_TN: Tensor | None = None) -> Tensor:
    return multiply(x_TK, weight_NK, bias_N, out_TN)


def linear_to_add(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    return multiply(x_TK, weight_NK, bias_N)


def linear_silu_mul(x_TK: Tensor, weight_2IK: Tensor, bias_2I: Tensor | None) -> Tensor:
    return silu_mul(multiply(x_TK, weight_2IK, bias_2I))
