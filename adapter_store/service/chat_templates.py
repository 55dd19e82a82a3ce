"""The chat templates that adapters bring, for frontends."""

from adapter_store.catalog.catalog import Catalog
from adapter_store.concurrency.workers import Workers
from adapter_store.formats.prompt_files import read_chat_template
from adapter_store.formats.strict_json import printable
from adapter_store.tiers.disk import DiskTier
from adapter_store.tiers.holds import Holds
from rpc.errors import not_found


class ChatTemplates:
    """Reads templates from the objects of the disk tier. Belongs to the event loop.

    Args:
        workers: threads that no load keeps busy, since a chat waits for this.
        holds: keeps the files of a digest while they are read here.
    """

    def __init__(self, *, catalog: Catalog, disk: DiskTier, workers: Workers, holds: Holds) -> None:
        self._catalog = catalog
        self._disk = disk
        self._workers = workers
        self._holds = holds

    async def get(self, digest: str) -> str:
        """The template of a digest. Raises LorikeetError: NOT_FOUND when it is unknown or brings none."""
        if self._catalog.knows(digest) and self._catalog.version(digest).has_chat_template:
            with self._holds.hold(digest):
                template = await self._workers.run(read_chat_template, self._disk.object_path(digest))
            if template is not None:
                return template
        raise not_found(
            "NO_CHAT_TEMPLATE", f"no adapter {printable(digest, 80)} with a chat template is loaded"
        )
