"""Where an adapter is on its way to the GPU and back: one table.

ABSENT ─ACQUIRE─▶ LEASING ─GRANTED─▶ STAGED ─PLACE─▶ COPYING ─COPIED─▶ RESIDENT ─EVICT─▶ ABSENT
   ▲                 │                  │               │
   └──── RELEASE, FAILED ───────────────┴─── FAILED ────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from executor.control.lifecycle import LifecycleError

NO_SLOT = -1


class Residency(IntEnum):
    ABSENT = 0
    LEASING = 1
    STAGED = 2
    COPYING = 3
    RESIDENT = 4


class Trigger(Enum):
    ACQUIRE = auto()
    GRANTED = auto()
    PLACE = auto()
    COPIED = auto()
    EVICT = auto()
    RELEASE = auto()
    FAILED = auto()


_TRANSITIONS: dict[tuple[Residency, Trigger], Residency] = {
    (Residency.ABSENT, Trigger.ACQUIRE): Residency.LEASING,
    (Residency.LEASING, Trigger.GRANTED): Residency.STAGED,
    (Residency.LEASING, Trigger.RELEASE): Residency.ABSENT,
    (Residency.LEASING, Trigger.FAILED): Residency.ABSENT,
    (Residency.STAGED, Trigger.PLACE): Residency.COPYING,
    (Residency.STAGED, Trigger.RELEASE): Residency.ABSENT,
    (Residency.STAGED, Trigger.FAILED): Residency.ABSENT,
    (Residency.COPYING, Trigger.COPIED): Residency.RESIDENT,
    (Residency.COPYING, Trigger.FAILED): Residency.ABSENT,
    (Residency.RESIDENT, Trigger.EVICT): Residency.ABSENT,
}


@dataclass(slots=True, eq=False)
class Adapter:
    """An adapter that is not absent. `last_used` counts installs, pins and unpins; larger is later."""

    digest: str
    residency: Residency = Residency.ABSENT
    units: int = 0
    unit_offset: int = 0
    slot: int = NO_SLOT
    pins: int = 0
    last_used: int = 0

    def move(self, trigger: Trigger) -> None:
        """Makes the transition; raises LifecycleError, naming event and state, where it is illegal."""
        try:
            self.residency = _TRANSITIONS[self.residency, trigger]
        except KeyError:
            where = f"adapter {self.digest[:12]} is {self.residency.name}"
            raise LifecycleError(f"{trigger.name} is illegal while {where}") from None
