"""Adapters, and what happens to them, as clients see it."""

from dataclasses import dataclass
from enum import Enum

from adapter_store.catalog.history import Pointer
from adapter_store.catalog.versions import Version


class State(Enum):
    """The values are those of the wire's AdapterState, without the prefix."""

    LOADING = "LOADING"
    ACTIVE = "ACTIVE"
    UNLOADING = "UNLOADING"
    UNLOADED = "UNLOADED"
    FAILED = "FAILED"


class Stage(Enum):
    """The values are those of the wire's LoadStage, without the prefix."""

    COPY = "COPY"
    VALIDATE = "VALIDATE"
    PACK = "PACK"
    PUBLISH = "PUBLISH"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    stage: Stage
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterView:
    """An adapter as clients see it; without `pointer` and `version` while nothing is loaded.

    Args:
        tenant: whose it is, or of what is being loaded: who asked.
    """

    name: str
    source: str
    state: State
    revision: int
    pointer: Pointer | None = None
    version: Version | None = None
    tenant: str = ""
    is_warm: bool = False

    @property
    def digest(self) -> str:
        return self.version.digest if self.version else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    adapter: AdapterView
    progress: Progress | None = None
    error: str = ""
