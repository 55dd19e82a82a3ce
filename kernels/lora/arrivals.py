"""Zeros that programs of a launch count up, for those of the same launch that wait for them."""

import torch
from torch import Tensor

_APART = 4  # int32 numbers: kernels like addresses that are multiples of 16 bytes


class Arrivals:
    """A counter for each launch of a step that needs one. Steps follow one another, recorded or not."""

    def __init__(self, launches: int, device: torch.device) -> None:
        self._counters = torch.zeros(launches * _APART, dtype=torch.int32, device=device)
        self._taken = 0

    def begin(self) -> None:
        """A step begins; recorded with it."""
        self._counters.zero_()
        self._taken = 0

    def take(self) -> Tensor:
        """The next launch's, int32 `[1]`. Raises IndexError where there are more than were told."""
        first = self._taken * _APART
        if first >= len(self._counters):
            raise IndexError(f"a step has more than {self._taken} launches that count")
        self._taken += 1
        return self._counters[first : first + 1]
