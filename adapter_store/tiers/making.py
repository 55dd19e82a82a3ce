"""Makes packs in the arena from objects of the disk tier: what of it is a worker thread's."""

from adapter_store.concurrency.crew import Crew, Urgency
from adapter_store.formats.layout import PackLayout
from adapter_store.packs.reading import OpenedAdapter
from adapter_store.packs.recipe import Recipe, recipe_of
from adapter_store.packs.scan_processes import ScanProcesses
from adapter_store.tiers.arena import Arena
from adapter_store.tiers.disk import DiskTier
from adapter_store.tiers.objects import fill_from_object, open_object, refill_from_object
from adapter_store.tiers.pack import ArenaPack
from adapter_store.tiers.sealing import pack_checksum


class PackMaker:
    """Thread-safe. The pack that is written belongs to its writer until it is published.

    Args:
        arena: where packs go.
        disk: where the objects lie that packs are made from.
        crew: helps the threads that call.
        scanners: help them with very many tensors.
    """

    def __init__(
        self, *, arena: Arena, disk: DiskTier, crew: Crew, scanners: ScanProcesses | None = None
    ) -> None:
        self._arena = arena
        self._disk = disk
        self._crew = crew
        self._scanners = scanners

    def open(self, digest: str, layout: PackLayout) -> OpenedAdapter:
        """Reads an object's headers. Raises LorikeetError."""
        return open_object(self._disk, digest, layout)

    def fill(self, pack: ArenaPack, opened: OpenedAdapter, urgency: Urgency) -> Recipe:
        """Looks at every tensor. Raises LorikeetError."""
        with self._arena.view(pack) as view:
            look = self._scanners and self._scanners.look(pack.pack_offset, view)
            return fill_from_object(self._disk, pack.key.digest, opened, view, self._crew, urgency, look)

    def fill_again(self, pack: ArenaPack, recipe: Recipe, checksum: bytes, urgency: Urgency) -> bool:
        """False where the pack is not what it was before."""
        with self._arena.view(pack) as view:
            digest = pack.key.digest
            return refill_from_object(self._disk, digest, recipe, checksum, view, self._crew, urgency)

    def verify(self, pack: ArenaPack, opened: OpenedAdapter, urgency: Urgency) -> Recipe | None:
        """Of a pack that somebody holds and an earlier store made: None where its checksum is another."""
        manifest = opened.plan.manifest
        if pack_checksum(self._arena, pack, manifest, urgency) != pack.checksum:
            return None
        return recipe_of(opened.plan)
