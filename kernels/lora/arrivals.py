"""Zeros that programs of a launch count up, for those of the same launch that wait for them."""

import torch
from torch import Tensor

_EACH = 64
"""Zeros of a launch."""


class Arrivals:
    """Counters for each launch of a step that needs some. Steps follow one another, recorded or not."""

    def __init__(self, launches: int, device: torch.device) -> None:
        self._counters = torch.zeros(launches * _EACH, dtype=torch.int32, device=device)
        self._taken = 0

    def begin(self) -> None:
        """A step begins; recorded with it."""
        self._counters.zero_()
        self._taken = 0

    def take(self) -> Tensor:
        """The next launch's, int32. Raises IndexError where there are more than were told."""
        first = self._taken * _EACH
        if first >= len(self._counters):
            raise IndexError(f"a step has more than {self._taken} launches that count")
        self._taken += 1
        return self._counters[first : first + _EACH]
