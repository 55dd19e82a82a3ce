"""From the store's memory into the pool, by the copier's thread."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from executor.adapters.arena_view import StalePackError
from executor.adapters.copier import Copier
from executor.adapters.lease_client import Lease
from executor.adapters.pool import PackCopy, Pool, Row
from rpc.errors import failed_precondition

log = logging.getLogger(__name__)

Load = TypeVar("Load")
Done = TypeVar("Done")

# Beyond these, packs are copied in turns, so that the first need not wait for the last.
_MOST_TOGETHER, _MOST_BYTES_TOGETHER = 8, 8 << 20


class Errand(NamedTuple, Generic[Load]):
    """A pack to be brought to `unit_offset` and `slot` for some load. `fetched` are its bytes where they came
    through gRPC.
    """

    load: Load
    lease: Lease
    slot: int
    unit_offset: int
    fetched: bytearray | None = None

    def check(self) -> None:
        """Raises StalePackError where the pack is no longer what was granted."""
        if self.fetched is None:
            assert self.lease.view is not None, "neither mapped nor fetched"
            self.lease.view.check(self.lease.header_offset, self.lease.generation)

    def pack(self) -> bytearray | memoryview:
        if self.fetched is not None:
            return self.fetched
        assert self.lease.view is not None, "neither mapped nor fetched"
        return self.lease.view.pack(self.lease.pack_offset, self.lease.manifest.total_bytes).data


class Bringer(Generic[Load, Row]):
    """Copies what waits together, for that is one call of the pool's. A pack counts only if it was what had
    been granted before it was copied and still is after: otherwise it has `moved`.

    What comes of an errand is told once, by one of the three, on the copier's thread.
    """

    def __init__(
        self,
        pool: Pool[Row],
        copier: Copier,
        *,
        brought: Callable[[Load, Row], None],
        moved: Callable[[Load], None],
        failed: Callable[[Load, Exception], None],
    ) -> None:
        self._pool = pool
        self._copier = copier
        self._brought, self._moved, self._failed = brought, moved, failed
        self._errands: deque[Errand[Load]] = deque()
        self._is_told = False

    def bring(self, errand: Errand[Load]) -> None:
        """Returns at once. From any thread."""
        self._errands.append(errand)
        if not self._is_told:
            self._is_told = True
            self._copier.submit(self._work)

    # The copier's thread.

    def _work(self) -> None:
        self._is_told = False  # first, so that who comes too late for this turn tells again
        while self._errands:
            together, size = [self._errands.popleft()], 0
            while self._errands and len(together) < _MOST_TOGETHER and size < _MOST_BYTES_TOGETHER:
                size += together[-1].lease.manifest.total_bytes
                together.append(self._errands.popleft())
            self._bring(together)

    def _bring(self, together: Sequence[Errand[Load]]) -> None:
        prepared = [
            (errand, copy) for errand in together if (copy := self._try(errand, self._prepare)) is not None
        ]
        try:
            self._pool.write([copy for _, copy in prepared])
        except Exception as error:
            for errand, _ in prepared:
                self._failed(errand.load, error)
            return
        for errand, copy in prepared:
            if self._try(errand, partial(self._complete, copy)):
                self._brought(errand.load, copy.row)

    def _prepare(self, errand: Errand[Load]) -> PackCopy[Row]:
        errand.check()
        lease, unit_offset = errand.lease, errand.unit_offset
        row = self._pool.prepare(unit_offset, lease.manifest, lease.places)
        return PackCopy(errand.slot, unit_offset, errand.pack(), row)

    def _complete(self, copy: PackCopy[Row], errand: Errand[Load]) -> bool:
        errand.check()
        self._pool.complete(copy.unit_offset, errand.lease.manifest, copy.row)
        return True

    def _try(self, errand: Errand[Load], do: Callable[[Errand[Load]], Done]) -> Done | None:
        """None where the errand has ended by it."""
        try:
            return do(errand)
        except StalePackError as error:
            log.info("pack %s moved while it was copied: %s", errand.lease.manifest.digest, error)
            self._moved(errand.load)
        except ValueError as error:
            self._failed(errand.load, failed_precondition("ADAPTER_DOES_NOT_FIT_BASE", str(error)))
        except Exception as error:
            self._failed(errand.load, error)
        return None
