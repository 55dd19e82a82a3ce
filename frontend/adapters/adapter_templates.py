"""The chat templates that adapters bring: fetched from the store once per digest, and checked."""

import asyncio
from collections import OrderedDict

import grpc

from frontend.adapters.catalog import Catalog
from frontend.text.chat_template import ChatTemplate
from frontend.text.template_process import AdapterTemplate, TemplateProcesses
from lorikeet.v1 import store_pb2, store_pb2_grpc
from rpc.errors import LorikeetError, failed_precondition, from_rpc

_MAX_KEPT = 256
_FETCH_SECONDS = 10.0


class AdapterTemplates:
    """Tells which template a digest's chats are rendered with. Belongs to the event loop.

    Args:
        base: the model's own, for the base and for adapters that bring none.
        processes: render what adapters bring.
        catalog: knows which digests bring one.
        stub: of the store's CatalogService; None without a store.
    """

    def __init__(
        self,
        *,
        base: ChatTemplate | None,
        processes: TemplateProcesses,
        catalog: Catalog,
        stub: store_pb2_grpc.CatalogServiceStub | None,
    ) -> None:
        self._base = base
        self._processes = processes
        self._catalog = catalog
        self._stub = stub
        # The one used last at the end. A fetch under way is there too, so that there is one for all who wait.
        self._known: OrderedDict[str, asyncio.Task[AdapterTemplate | LorikeetError]] = OrderedDict()

    async def of(self, digest: str) -> ChatTemplate | AdapterTemplate | None:
        """The template for a digest, "" for the base.

        Raises FAILED_PRECONDITION for one that is broken, and what the store answers when it cannot be had.
        """
        if self._stub is None or not self._catalog.brings_template(digest):
            return self._base
        task = self._known.get(digest)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._fetch(self._stub, digest))
            self._known[digest] = task
        self._known.move_to_end(digest)
        while len(self._known) > _MAX_KEPT:
            self._known.popitem(last=False)
        found = await asyncio.shield(task)
        if isinstance(found, LorikeetError):
            raise found
        return found

    async def _fetch(
        self, stub: store_pb2_grpc.CatalogServiceStub, digest: str
    ) -> AdapterTemplate | LorikeetError:
        """The template, or what is wrong with it for good."""
        request = store_pb2.GetChatTemplateRequest(digest=digest)
        try:
            source = (await stub.GetChatTemplate(request, timeout=_FETCH_SECONDS)).text
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        template = self._processes.template(source)
        try:
            await template.check()
        except ValueError as error:
            return failed_precondition(
                "CHAT_TEMPLATE_BROKEN",
                f"the adapter's own template cannot be used: {error}; mend it and load the adapter again, or "
                "send the prompt as text",
                digest=digest,
            )
        return template
