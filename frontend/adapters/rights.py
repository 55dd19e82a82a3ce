"""What a caller may do with whose adapters: everything, or what belongs to its tenant."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import TypeVar

from frontend.adapters.catalog import Catalog
from frontend.adapters.references import parse_adapter
from lorikeet.v1 import adapters_pb2
from rpc.access import check_tenant, current_caller, may_change, may_use
from rpc.errors import LorikeetError, not_found, permission_denied
from rpc.refusing import read_to_end

Change = TypeVar("Change", adapters_pb2.UnloadAdapterRequest, adapters_pb2.RollbackAdapterRequest)


class AdapterRights:
    """Decides for the caller of the present call, by what this frontend knows of names.

    Args:
        catalog: whose is which name.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def to_load(self, request: adapters_pb2.LoadAdapterRequest) -> adapters_pb2.LoadAdapterRequest:
        """The request on behalf of its tenant. Raises LorikeetError: PERMISSION_DENIED."""
        self._take(request)
        return request

    async def to_upload(
        self, messages: AsyncIterable[adapters_pb2.UploadAdapterRequest]
    ) -> AsyncIterator[adapters_pb2.UploadAdapterRequest]:
        """The messages on behalf of their tenant. Raises LorikeetError: PERMISSION_DENIED."""
        async for message in messages:
            if message.WhichOneof("message") == "start":
                try:
                    self._take(message.start)
                except LorikeetError:
                    await read_to_end(messages)
                    raise
            yield message

    def to_change(self, request: Change) -> Change:
        """The request on behalf of its tenant; the store decides about what this frontend does not know yet.

        Raises LorikeetError: NOT_FOUND for another tenant's, PERMISSION_DENIED for everyone's.
        """
        caller = current_caller()
        request.tenant = check_tenant(request.tenant, caller)
        tenant = self._catalog.tenant_of(request.name)
        if tenant is None or may_change(tenant, caller):
            return request
        self.to_see(request.name)
        raise permission_denied(
            "SHARED_ADAPTER",
            f"{request.name} belongs to no tenant: only a token without a tenant may change it",
        )

    def to_see(self, adapter: str) -> None:
        """For a name, or "b3:" and a digest. Raises LorikeetError: NOT_FOUND for another tenant's."""
        if not self._catalog.may_use(parse_adapter(adapter), current_caller()):
            raise hidden(adapter)

    def to_prefetch(self, adapter: str) -> None:
        """For a name, or "b3:" and a digest.

        A tenant is told by what this frontend knows alone: the store may know others' names before it.

        Raises LorikeetError: NOT_FOUND for another tenant's as for one that there is not; UNAVAILABLE.
        """
        ref, caller = parse_adapter(adapter), current_caller()
        if caller.tenant:
            self._catalog.resolve(ref, caller)

    def to_see_all(self) -> None:
        """Raises LorikeetError: PERMISSION_DENIED for a caller that belongs to a tenant."""
        if current_caller().tenant:
            raise permission_denied(
                "TENANTS_TOKEN", "these are figures of all tenants: use a token without a tenant"
            )

    def sees(self, adapter: adapters_pb2.Adapter) -> bool:
        """Whether an adapter may be listed."""
        return may_use(adapter.tenant, current_caller())

    def sees_event(self, adapter: adapters_pb2.Adapter) -> bool:
        """Whether a change may be told of. A load for no tenant is told to the owner of its name."""
        if not current_caller().tenant:
            return True
        tenant = adapter.tenant or self._catalog.tenant_of(adapter.name)
        return tenant is not None and may_use(tenant, current_caller())

    def _take(self, wanted: adapters_pb2.LoadAdapterRequest | adapters_pb2.UploadStart) -> None:
        caller = current_caller()
        wanted.tenant = check_tenant(wanted.tenant, caller)
        owner = self._catalog.tenant_of(wanted.name)
        if owner is not None and not may_change(owner, caller):
            raise permission_denied(
                "NAME_TAKEN", f"{wanted.name} is not an adapter of your tenant: choose another name"
            )


def hidden(adapter: str) -> LorikeetError:
    """What is said of another tenant's adapter: what the store says of a name that there is not."""
    return not_found(
        "ADAPTER_NOT_FOUND",
        f"no adapter is loaded as '{adapter}': load it, or list what there is",
        adapter=adapter,
    )
