"""What base and adapters of experts hold and call.

Legend: T tokens, E experts, P pairs of token and expert, D hidden, I an expert's width.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from kernels.moe.routing import Routing


class ExpertWeights(NamedTuple):
    """All experts of a layer: gate_up `[E, 2 I, D]`, gate's rows first, and down `[E, D, I]`, in the compute
    dtype.
    """

    gate_up_E2ID: Tensor
    down_EDI: Tensor


class Pairs(NamedTuple):
    """What is still to be added up over each token's experts: y `[P, D]`, that of expert -1 anything."""

    y_PD: Tensor
    routing: Routing


class Adapt(Protocol):
    """Changes the two products in place. Pairs of expert -1 may hold anything and count for nothing."""

    def gate_up(self, y_P2I: Tensor, x_TD: Tensor, routing: Routing) -> None:
        """After `y[p] = gate_up[e] @ x[t]`."""
        ...

    def down(self, y_PD: Tensor, wide_PI: Tensor, routing: Routing) -> None:
        """After `y[p] = down[e] @ wide[p]`, before any routing weight."""
        ...
