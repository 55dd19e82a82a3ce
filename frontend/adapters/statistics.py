"""What adapters and tiers do and hold, put together from executor, store and this frontend."""

from collections.abc import Sequence

import grpc

from frontend.adapters.catalog import Catalog
from frontend.usage import OTHERS, UsageTable
from lorikeet.v1 import adapters_pb2, executor_pb2, executor_pb2_grpc, store_pb2, store_pb2_grpc
from rpc.errors import from_rpc, invalid_argument

_DEFAULT_LIMIT, _LARGEST_LIMIT = 100, 1000
_ANSWER_SECONDS = 5.0


class AdapterStatistics:
    """Asks the others when it is asked itself; keeps nothing.

    Args:
        executor: where adapters are resident.
        packs: the store's; None where there is none.
        catalog: the names of this frontend.
        usage: what this frontend counts.
    """

    def __init__(
        self,
        *,
        executor: executor_pb2_grpc.ExecutorServiceStub,
        packs: store_pb2_grpc.PackServiceStub | None,
        catalog: Catalog,
        usage: UsageTable,
    ) -> None:
        self._executor = executor
        self._packs = packs
        self._catalog = catalog
        self._usage = usage

    async def read(self, limit: int) -> adapters_pb2.GetAdapterStatisticsResponse:
        """The busiest adapters, at most `limit` (0 takes the default), and all tiers.

        Raises:
            LorikeetError: INVALID_ARGUMENT for too large a limit; the status of a service that cannot answer.
        """
        if limit > _LARGEST_LIMIT:
            raise invalid_argument("LIMIT", f"limit is {limit}; at most {_LARGEST_LIMIT} adapters are listed")
        limit = limit or _DEFAULT_LIMIT
        try:
            engine = await self._executor.GetStatistics(
                executor_pb2.GetExecutorStatisticsRequest(adapters=limit), timeout=_ANSWER_SECONDS
            )
            response = adapters_pb2.GetAdapterStatisticsResponse(
                adapters=self._usages(engine.adapters, limit)
            )
            warm = await self._ask_store([usage.digest for usage in response.adapters if usage.digest])
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        is_warm = set(warm.warm_digests)
        for usage in response.adapters:
            usage.is_warm = usage.digest in is_warm
        response.tiers.extend(warm.tiers)
        response.tiers.append(_pool(engine))
        return response

    async def _ask_store(self, digests: Sequence[str]) -> store_pb2.PackStatistics:
        if self._packs is None:
            return store_pb2.PackStatistics()
        request = store_pb2.GetPackStatisticsRequest(digests=digests)
        return await self._packs.GetStatistics(request, timeout=_ANSWER_SECONDS)

    def _usages(
        self, resident: Sequence[executor_pb2.ExecutorAdapter], limit: int
    ) -> list[adapters_pb2.AdapterUsage]:
        """Those that the executor lists and those that were asked for here, busiest first."""
        by_digest = {adapter.digest: adapter for adapter in resident if adapter.digest != OTHERS}
        for digest, _ in self._usage.busiest(limit):
            by_digest.setdefault(digest, executor_pb2.ExecutorAdapter(digest=digest))
        usages = [self._join(adapter) for adapter in by_digest.values()]
        usages.sort(key=lambda usage: (usage.running + usage.waiting, usage.requests), reverse=True)
        return usages[:limit]

    def _join(self, adapter: executor_pb2.ExecutorAdapter) -> adapters_pb2.AdapterUsage:
        here = self._usage.of(adapter.digest)
        return adapters_pb2.AdapterUsage(
            digest=adapter.digest,
            names=self._catalog.names_of(adapter.digest),
            # Of all frontends where the executor still counts them apart.
            requests=max(adapter.requests, here.requests),
            prompt_tokens=here.prompt_tokens,
            generated_tokens=here.generated_tokens,
            running=adapter.running,
            waiting=adapter.waiting,
            is_resident=adapter.is_resident,
            pool_loads=adapter.pool_loads,
            pool_hits=adapter.pool_hits,
            slot_wait_seconds=adapter.slot_wait_seconds,
            load_wait_seconds=adapter.load_wait_seconds,
            queue_wait_seconds=adapter.queue_wait_seconds,
        )


def _pool(engine: executor_pb2.ExecutorStatistics) -> adapters_pb2.TierUsage:
    return adapters_pb2.TierUsage(
        tier="pool",
        entries=engine.adapters_resident,
        bytes=engine.adapter_pool_bytes - engine.adapter_pool_bytes_free,
        capacity_bytes=engine.adapter_pool_bytes,
        hits=engine.pool_hits,
        misses=engine.pool_misses,
        loads=engine.pool_loads,
        evictions=engine.pool_evictions,
    )
