"""The pool of resident packs and the slot table that points into it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from executor.adapters.placements import Placements, placements_of
from executor.adapters.pool import PackCopy
from executor.adapters.recent import Recent
from executor.model.config import ModelConfig
from executor.model.derivation import Derivation
from executor.model.host_memory import RegisteredMemory
from executor.model.layout import embedding_index, head_slices, named_slices, router_slices
from executor.model.pack_copies import PackCopies
from executor.model.pack_rows import PackRows
from executor.model.parameters import Parameters
from kernels.lora import UNIT_BYTES, LoraBatch, SlotRow, SlotTable
from kernels.lora.tiles import Tiles
from kernels.transfer import upload
from lorikeet.v1 import layout_pb2

# Of the layout, 58 bytes each.
_MOST_KNOWN_SLICES = 500_000


class _KnownRow(NamedTuple):
    """The row of a pack at `unit_offset`: of any adapter with these very placements."""

    places: Placements
    unit_offset: int
    row: SlotRow


class AdapterPool:
    """Flat memory for packs of any rank, and one slot row for each resident adapter.

    Which range and slot belong to whom is decided elsewhere. `prepare`, `write` and `complete`, in this
    order, may run on any one thread, for ranges and slots that no step in flight has; `install_slot` and
    `clear_slot` come between launches, on the engine's thread, and cost it next to nothing: the row is there
    already. A row stays as it is when its slot is cleared, and steps that would have the slot are refused.
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
        self._copies = PackCopies(self.table)
        self._host = RegisteredMemory(pool.device) if pool.is_cuda else None
        self._derivation = Derivation(config, parameters, pool) if parameters is not None else None
        self._ends = embedding_index(config), head_slices(config)[0].slice
        self.triton = pool.is_cuda if triton is None else triton
        # Where plain torch computes, rows have views of their own.
        self._rows: Recent[_KnownRow] = Recent(_MOST_KNOWN_SLICES)
        for slot in range(slots):
            self.table.hide(slot)

    def batch(self, slots: np.ndarray, lengths: np.ndarray) -> LoraBatch:
        """Rows' slots, sorted, and numbers of tokens as the kernels want them."""
        batch, table = LoraBatch.of_rows(slots, lengths), self.table
        if batch.empty:
            return batch
        traits = table.traits(batch.slots)
        if not self.triton:
            return batch
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

    def prepare(
        self, unit_offset: int, manifest: layout_pb2.PackManifest, places: Placements | None = None
    ) -> SlotRow:
        """Work out the row that shows a pack, once it lies at `unit_offset`.

        Raises ValueError where the manifest does not fit the layout, the pack or the pool, or needs the base
        and there is none.
        """
        places = placements_of(manifest) if places is None else places
        known = self._rows.find(id(places))  # nobody else's while they are kept
        if known is not None:  # has fitted its pack, which `write` fits into the pool
            return self.table.moved(known.row, unit_offset - known.unit_offset)
        row = self.table.row_of(self._packs.of(unit_offset, manifest, places))
        if row.has_vectors and self._derivation is None:
            raise ValueError("a pool without the base's parameters takes plain LoRA only")
        if self.triton and not row.has_vectors and not row.saved:
            self._rows.keep(id(places), _KnownRow(places, unit_offset, row), len(row.fields))
        return row

    def write(self, copies: Sequence[PackCopy[SlotRow]]) -> None:
        """Copy packs and rows to where they are to lie. Raises ValueError, before anything is copied, where
        one does not fit there.
        """
        self._copies.make(copies)

    def complete(self, unit_offset: int, manifest: layout_pb2.PackManifest, row: SlotRow) -> None:
        """Complete the pack that was written to `unit_offset` with what depends on the base as well. Raises
        ValueError where the base and this adapter do not go together.
        """
        if not row.has_vectors:
            return
        assert self._derivation is not None, "was prepared without the base"
        with self._copies.stream():
            self._derivation.derive(unit_offset * UNIT_BYTES, manifest)
        self._copies.wait()

    def install_slot(self, slot: int, row: SlotRow) -> None:
        """Make a slot show the pack that was written for it."""
        self.table.say_shows(slot, row)

    def clear_slot(self, slot: int) -> None:
        """No step may have the slot from now on."""
        self.table.hide(slot)
