"""The layouts that executors have published. The one registered last decides what an adapter must fit."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from adapter_store.concurrency.workers import Workers
from adapter_store.formats.layout import PackLayout, read_layout
from adapter_store.records.database import KEPT_LAYOUTS, Database, database_errors
from lorikeet.v1 import layout_pb2
from rpc.errors import LorikeetError, failed_precondition

log = logging.getLogger(__name__)


class Layouts:
    """Known layouts, remembered over restarts. Belongs to the event loop.

    Args:
        database: where they are written down.
        writer: the one thread that writes to it.
        max_rank: of an adapter, where it is below the layout's own; 0 leaves it to that.
    """

    def __init__(self, database: Database, writer: Workers, *, max_rank: int = 0) -> None:
        self._database = database
        self._writer = writer
        self._max_rank = max_rank
        self._lock = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []
        # In the order of registration, no more than the database keeps.
        self._known: dict[str, PackLayout] = {}
        for data in database.read_layouts():
            try:
                layout = read_layout(layout_pb2.Layout.FromString(data))
            except LorikeetError as error:
                log.warning("a layout of an earlier run is not understood any more: %s", error)
                continue
            self._known[layout.digest] = layout

    def on_registered(self, listener: Callable[[], None]) -> None:
        """`listener` hears of each registration, when the layout is the latest already."""
        self._listeners.append(listener)

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(self._known)

    @property
    def latest(self) -> PackLayout | None:
        """The layout registered last, if any."""
        return next(reversed(self._known.values()), None)

    @property
    def current(self) -> PackLayout:
        """The layout registered last. Raises LorikeetError: FAILED_PRECONDITION when there is none yet."""
        if not self._known:
            error = failed_precondition(
                "NO_LAYOUT",
                "no executor has published its layout yet, so nothing can be checked: start one, then retry",
            )
            error.retry_after = 1.0
            raise error
        layout = next(reversed(self._known.values()))
        if not 0 < self._max_rank < layout.max_rank:
            return layout
        # What packs are made for stays the same; only less is let in.
        return replace(layout, max_rank=self._max_rank, is_max_rank_the_stores=True)

    def get(self, digest: str) -> PackLayout:
        """Raises LorikeetError: FAILED_PRECONDITION for a layout that nobody registered."""
        layout = self._known.get(digest)
        if layout is None:
            raise failed_precondition(
                "UNKNOWN_LAYOUT", "this layout is not known here: call RegisterLayout first"
            )
        return layout

    async def register(self, message: layout_pb2.Layout) -> PackLayout:
        """Validates and remembers a layout.

        Raises LorikeetError: INVALID_ARGUMENT, RESOURCE_EXHAUSTED when it cannot be written down.
        """
        layout = read_layout(message)
        async with self._lock:
            # What is written down already needs no room on a disk that may be full.
            if next(reversed(self._known), None) != layout.digest:
                await self._remember(layout, message.SerializeToString(deterministic=True))
        for listener in self._listeners:
            listener()
        return layout

    async def _remember(self, layout: PackLayout, data: bytes) -> None:
        with database_errors():
            await self._writer.run(self._database.save_layout, layout.digest, data)
        self._known.pop(layout.digest, None)
        self._known[layout.digest] = layout
        while len(self._known) > KEPT_LAYOUTS:
            del self._known[next(iter(self._known))]
