"""A frontend's metrics: requests and tokens by adapter, first-token times, and what is queued."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from frontend.adapters.catalog import Catalog
from frontend.usage import FIRST_TOKEN_BOUNDS, OTHERS, Usage, UsageTable
from rpc.metrics import Rising

# Each adapter is four time series; those beyond are added up as "others".
MOST_ADAPTERS = 200


class FrontendMetrics:
    """Reads the counts of one frontend. Belongs to the event loop.

    Args:
        usage: by digest.
        catalog: names for the digests.
        queues: name to present value, of everything that is queued or held.
    """

    def __init__(
        self, *, usage: UsageTable, catalog: Catalog, queues: Callable[[], Mapping[str, int]]
    ) -> None:
        self._usage = usage
        self._catalog = catalog
        self._queues = queues
        self._rising = Rising()

    async def gather(self) -> list[Metric]:
        """All metric families at this moment."""
        held = GaugeMetricFamily("lorikeet_frontend_held", "What is queued or held now.", labels=["what"])
        for what, value in self._queues().items():
            held.add_metric([what], value)
        return [*self._by_adapter(), self._first_token(), held]

    def _by_adapter(self) -> list[Metric]:
        labels = ["adapter", "digest"]
        requests = CounterMetricFamily("lorikeet_requests", "Requests that ended.", labels=labels)
        failures = CounterMetricFamily(
            "lorikeet_request_failures", "Of those, failed or cancelled.", labels=labels
        )
        prompt = CounterMetricFamily("lorikeet_prompt_tokens", "Tokens of their prompts.", labels=labels)
        generated = CounterMetricFamily("lorikeet_generated_tokens", "Tokens generated.", labels=labels)
        listed = self._usage.busiest(MOST_ADAPTERS)
        rest = self._usage.total()
        for _, usage in listed:
            rest = rest.minus(usage)
        for digest, usage in [*listed, (OTHERS, self._risen(rest))]:
            label = [self._name(digest), digest]
            requests.add_metric(label, usage.requests)
            failures.add_metric(label, usage.failures)
            prompt.add_metric(label, usage.prompt_tokens)
            generated.add_metric(label, usage.generated_tokens)
        return [requests, failures, prompt, generated]

    def _name(self, digest: str) -> str:
        if digest == OTHERS:
            return OTHERS
        return next(iter(self._catalog.names_of(digest)), "")

    def _risen(self, rest: Usage) -> Usage:
        return Usage(**{name: int(self._rising.most(name, value)) for name, value in asdict(rest).items()})

    def _first_token(self) -> Metric:
        bounds = [*map(str, FIRST_TOKEN_BOUNDS), "+Inf"]
        counts = accumulate(self._usage.first_token_counts)
        family = HistogramMetricFamily("lorikeet_first_token_seconds", "From arrival to the first token.")
        family.add_metric([], list(zip(bounds, counts, strict=True)), self._usage.first_token_seconds)
        return family
