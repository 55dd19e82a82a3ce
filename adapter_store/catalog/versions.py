"""What the store remembers of an adapter's content, whatever names point to it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleReport:
    """`delta_norm` is NaN where nobody computed it; `parts` are those of AdaptedPart, without the prefix.

    With `experts`, of so many that are alike: `delta_norm` is the largest, and the module has "*" for their
    numbers.
    """

    module: str
    rank: int
    scaling: float
    delta_norm: float = math.nan
    parts: tuple[str, ...] = ()
    experts: int = 0
    least_delta_norm: float = math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """What is known of a digest. `pack_bytes` are for the layout that it was loaded for."""

    digest: str
    pack_bytes: int
    max_rank: int
    modules: tuple[ModuleReport, ...]
    notes: tuple[str, ...]
    has_chat_template: bool = False
