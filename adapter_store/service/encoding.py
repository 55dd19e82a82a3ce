"""Between what the store says inside and its messages on the wire."""

import asyncio
from collections.abc import Callable

from adapter_store.catalog.views import AdapterView, Event
from adapter_store.peers.executors import Grant, Refusal, Retire
from adapter_store.peers.followers import Target, Update
from lorikeet.v1 import adapters_pb2, store_pb2
from rpc.errors import code_number

_MOST_TOGETHER = 64
# Manifests of experts' adapters have hundreds of kilobytes each.
_MOST_TOGETHER_BYTES = 1 << 16
# Of a catalog, between two turns of the event loop: 2 ms.
_TARGETS_AT_ONCE = 500


def adapter_message(view: AdapterView, *, with_report: bool = False) -> adapters_pb2.Adapter:
    message = adapters_pb2.Adapter(
        name=view.name,
        source=view.source,
        state=f"ADAPTER_STATE_{view.state.value}",
        revision=view.revision,
        tenant=view.tenant,
        tier=adapters_pb2.ADAPTER_TIER_WARM if view.is_warm else adapters_pb2.ADAPTER_TIER_COLD,
    )
    if view.pointer is None or view.version is None:
        message.tier = adapters_pb2.ADAPTER_TIER_UNSPECIFIED
        return message
    message.digest = view.version.digest
    message.pack_bytes = view.version.pack_bytes
    message.max_rank = view.version.max_rank
    message.load_time.FromNanoseconds(view.pointer.load_time_ns)
    message.pinned = view.pointer.pinned
    message.has_chat_template = view.version.has_chat_template
    if with_report:
        message.report.notes.extend(view.version.notes)
        for report in view.version.modules:
            message.report.modules.add(
                module=report.module,
                rank=report.rank,
                scaling=report.scaling,
                delta_norm=report.delta_norm,
                parts=[f"ADAPTED_PART_{part}" for part in report.parts],
                experts=report.experts,
                least_delta_norm=report.least_delta_norm if report.experts else 0.0,
            )
        for earlier in view.pointer.previous:
            version = message.previous.add(digest=earlier.digest, source=earlier.source)
            version.load_time.FromNanoseconds(earlier.load_time_ns)
    return message


def event_message(event: Event) -> adapters_pb2.AdapterEvent:
    progress = None
    if event.progress is not None:
        progress = adapters_pb2.LoadProgress(
            stage=f"LOAD_STAGE_{event.progress.stage.value}",
            bytes_done=event.progress.bytes_done,
            bytes_total=event.progress.bytes_total,
        )
    return adapters_pb2.AdapterEvent(
        adapter=adapter_message(event.adapter), progress=progress, error=event.error
    )


def pointer_message(target: Target) -> store_pb2.AdapterPointer:
    return store_pb2.AdapterPointer(
        name=target.name,
        digest=target.digest,
        abort_running=target.abort_running,
        has_chat_template=target.has_chat_template,
        tenant=target.tenant,
    )


async def follow_message(update: Update) -> store_pb2.FollowResponse:
    """In turns with whatever else the event loop has to do: of 100,000 names it takes 0.3 s."""
    message = store_pb2.FollowResponse(revision=update.revision, snapshot=update.is_snapshot)
    for first in range(0, len(update.targets), _TARGETS_AT_ONCE):
        if first:
            await asyncio.sleep(0)
        message.pointers.extend(map(pointer_message, update.targets[first : first + _TARGETS_AT_ONCE]))
    return message


def lease_messages(
    first: Grant | Refusal | Retire, take: Callable[[], Grant | Refusal | Retire | None]
) -> store_pb2.LeaseResponse:
    """A message and those that wait behind it, as far as they are few and small: each costs both sides a
    wake-up or two.
    """
    together = [lease_message(first)]
    size = together[0].ByteSize()
    while size < _MOST_TOGETHER_BYTES and len(together) < _MOST_TOGETHER and (message := take()) is not None:
        together.append(lease_message(message))
        size += together[-1].ByteSize()
    if len(together) == 1:
        return together[0]
    return store_pb2.LeaseResponse(batch=store_pb2.LeaseAnswers(responses=together))


def lease_message(message: Grant | Refusal | Retire) -> store_pb2.LeaseResponse:
    match message:
        case Grant():
            grant = store_pb2.LeaseGrant(
                lease=message.lease,
                header_offset=message.pack.header_offset,
                pack_offset=message.pack.pack_offset,
                generation=message.pack.generation,
                manifest=message.manifest,
            )
            return store_pb2.LeaseResponse(grant=grant)
        case Refusal():
            refusal = store_pb2.LeaseRefusal(
                lease=message.lease,
                code=code_number(message.error.code),
                reason=message.error.reason,
                message=message.error.message,
            )
            return store_pb2.LeaseResponse(refusal=refusal)
        case Retire():
            return store_pb2.LeaseResponse(retire=store_pb2.RetireAdapter(digest=message.digest))
