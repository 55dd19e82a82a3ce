"""The pool of resident packs and the slot table that points into it."""

import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from executor.adapters.placements import Placements, placements_of
from executor.adapters.recent import Recent
from executor.model.config import ModelConfig
from executor.model.derivation import Derivation
from executor.model.host_memory import RegisteredMemory
from executor.model.layout import embedding_index, head_slices, named_slices, router_slices
from executor.model.pack_rows import PackRows
from executor.model.parameters import Parameters
from kernels.lora import UNIT_BYTES, LoraBatch, SlotRow, SlotTable
from kernels.lora.tiles import Tiles
from kernels.transfer import upload
from lorikeet.v1 import layout_pb2

# A pack may lie in read-only memory; it is only read.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

# Of the layout, 52 pinned bytes each.
_MOST_KNOWN_SLICES = 500_000


class _KnownRow(NamedTuple):
    """The row of a pack that was written to `unit_offset` once: of any adapter with these very placements."""

    places: Placements
    unit_offset: int
    row: SlotRow


class AdapterPool:
    """Flat memory for packs of any rank, and one slot row for each resident adapter.

    Which range and slot belong to whom is decided elsewhere. `write` and, after it, `prepare` may run on any
    one thread, in a range that no slot shows; `install_slot` and `clear_slot` come between launches, on the
    engine's thread.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        units: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        triton: bool | None = None,
        parameters: Parameters | None = None,
        deterministic: bool = False,
    ) -> None:
        """`units` of 128 bytes for packs in all; `slots` adapters at most. `triton`: computed with Triton's
        kernels, as on every GPU. `parameters` are the base's, which some adapters' vectors depend on.
        `deterministic`: what an adapter does to a token depends on nothing else in the batch.
        """
        pool = torch.zeros(units * UNIT_BYTES // dtype.itemsize, dtype=dtype, device=device)
        self.units = units
        slices = named_slices(config)
        self._routers = router_slices(config)
        self.table = SlotTable(
            pool=pool,
            shapes=[named.shape for named in slices],
            slots=slots,
            fixed_order=deterministic,
        )
        self._packs = PackRows(slices, dtype.itemsize)
        self._bytes = pool.view(torch.uint8)
        self._copies = torch.cuda.Stream(pool.device) if pool.is_cuda else None
        self._host = RegisteredMemory(pool.device) if pool.is_cuda else None
        self._derivation = Derivation(config, parameters, pool) if parameters is not None else None
        self._ends = embedding_index(config), head_slices(config)[0].slice
        self.triton = pool.is_cuda if triton is None else triton
        # Where plain torch computes, rows have views of their own.
        self._rows: Recent[_KnownRow] = Recent(_MOST_KNOWN_SLICES)

    def batch(self, slots: np.ndarray, lengths: np.ndarray) -> LoraBatch:
        """Rows' slots, sorted, and numbers of tokens as the kernels want them."""
        batch, table = LoraBatch.of_rows(slots, lengths), self.table
        if not self.triton or batch.empty:
            return batch
        traits = table.traits(batch.slots)
        if table.fixed_order:
            tiles = Tiles.cut(batch.slots, batch.splits, rank=traits.rank, like=table.pool, fixed_order=True)
            batch = replace(batch, tiles=tiles)
        else:
            batch = batch.tiled(table)
        batch = replace(
            batch,
            touches_ends=table.changes(batch.slots, self._ends),
            has_vectors=traits.has_vectors,
            shares=traits.shares,
        )
        if not self._routers:
            return batch
        (slots_T,) = upload(table.pool.device, np.repeat(slots, lengths).astype(np.int32))
        return replace(batch, slots_T=slots_T, touches_routers=table.touches(batch.slots, self._routers))

    def register(self, memory: np.ndarray) -> None:
        """Says where packs will come from, so that copies from there are fast; comes between copies."""
        if self._host is not None:
            self._host.register(memory)

    def release(self) -> None:
        """No pack will come from the registered memory any more."""
        if self._host is not None:
            self._host.release()

    def write(self, unit_offset: int, pack: bytes | bytearray | memoryview) -> None:
        """Copy a pack into the pool. Raises ValueError where it does not fit there."""
        size, start = memoryview(pack).nbytes, unit_offset * UNIT_BYTES
        if start < 0 or start + size > len(self._bytes):
            raise ValueError(f"a pack of {size} bytes at unit {unit_offset} does not fit the pool")
        place = self._bytes[start : start + size]
        if self._copies is None:
            place.numpy()[:] = np.frombuffer(pack, dtype=np.uint8)
            return
        # After all steps launched so far: the range may have been another adapter's.
        self._copies.wait_stream(torch.cuda.default_stream(place.device))
        with torch.cuda.stream(self._copies):
            place.copy_(torch.frombuffer(pack, dtype=torch.uint8), non_blocking=True)
        self._copies.synchronize()

    def prepare(
        self, unit_offset: int, manifest: layout_pb2.PackManifest, places: Placements | None = None
    ) -> SlotRow:
        """Complete the pack that was written to `unit_offset` with what depends on the base as well, and work
        out the row that shows it.

        Raises ValueError where the base and this adapter do not go together, or the manifest does not fit the
        layout, the pack or the pool.
        """
        places = placements_of(manifest) if places is None else places
        known = self._rows.find(id(places))  # nobody else's while they are kept
        if known is not None:  # has fitted its pack, which `write` fitted in
            return self.table.moved(known.row, unit_offset - known.unit_offset)
        pack = self._packs.of(unit_offset, manifest, places)
        row = self.table.row_of(pack.columns)
        if pack.has_vectors:
            self._derive(unit_offset, manifest)
        elif self.triton and not row.saved:
            self._rows.keep(id(places), _KnownRow(places, unit_offset, row), len(row.fields))
        return row

    def install_slot(self, slot: int, row: SlotRow) -> None:
        """Make a slot show a pack."""
        self.table.show(slot, row)

    def clear_slot(self, slot: int) -> None:
        """Make the slot show nothing."""
        self.table.clear_row(slot)

    def _derive(self, unit_offset: int, manifest: layout_pb2.PackManifest) -> None:
        if self._derivation is None:
            raise ValueError("a pool without the base's parameters takes plain LoRA only")
        if self._copies is None:
            self._derivation.derive(unit_offset * UNIT_BYTES, manifest)
            return
        with torch.cuda.stream(self._copies):
            self._derivation.derive(unit_offset * UNIT_BYTES, manifest)
        self._copies.synchronize()
