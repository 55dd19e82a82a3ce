"""What a decoder layer does between its matrix products, each step in one pass over memory.

`reference` defines the steps in plain torch and serves the CPU; `gpu` is Triton's, with the same functions;
`fixed` is the deterministic mode's, whose products sum in one order.
"""

from typing import Protocol

import torch
from torch import Tensor


class FusedSteps(Protocol):
    """Each of the three; shapes and semantics as in `reference`."""

    @staticmethod
    def linear(
        x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, out_TN: Tensor | None = None
    ) -> Tensor: ...

    @staticmethod
    def linear_to_add(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor: ...

    @staticmethod
    def linear_silu_mul(x_TK: Tensor, weight_2IK: Tensor, bias_2I: Tensor | None) -> Tensor: ...

    @staticmethod
    def add_norm(x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float) -> Tensor: ...

    @staticmethod
    def rotate_store(
        qkv_TP: Tensor,
        kv_S2Kd: Tensor,
        places_T: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions_T: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
    ) -> Tensor: ...

    @staticmethod
    def silu_mul(gate_up_T2I: Tensor, dtype: torch.dtype | None = None) -> Tensor: ...

    @staticmethod
    def greedy(logits_NV: Tensor) -> Tensor: ...
