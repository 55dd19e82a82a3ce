"""What an executor tells Prometheus."""

from executor.service.metrics import ExecutorMetrics
from lorikeet.v1 import executor_pb2 as pb


async def test_every_count_and_wait_is_told() -> None:
    statistics = pb.ExecutorStatistics(
        steps=7,
        requests_running=3,
        pool_evictions=2,
        adapters=[
            pb.ExecutorAdapter(digest="ab" * 32, requests=5, pool_hits=4, load_wait_seconds=1.5),
            pb.ExecutorAdapter(digest="others", requests=9),
        ],
    )
    asked: list[int] = []

    def read(adapters: int) -> pb.ExecutorStatistics:
        asked.append(adapters)
        return statistics

    families = await ExecutorMetrics(read).gather()
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }
    assert asked == [200]
    assert samples["lorikeet_executor_steps_total", ()] == 7
    assert samples["lorikeet_executor_pool_evictions_total", ()] == 2
    assert samples["lorikeet_executor_held", ("requests_running",)] == 3
    assert samples["lorikeet_adapter_requests_total", ("ab" * 32,)] == 5
    assert samples["lorikeet_adapter_requests_total", ("others",)] == 9
    assert samples["lorikeet_adapter_wait_seconds_total", ("ab" * 32, "load")] == 1.5


async def test_what_is_left_over_never_falls() -> None:
    waits = iter((9.0, 4.0, 11.0))

    def read(adapters: int) -> pb.ExecutorStatistics:
        return pb.ExecutorStatistics(
            adapters=[
                pb.ExecutorAdapter(digest="ab" * 32, slot_wait_seconds=1.0),
                pb.ExecutorAdapter(digest="others", slot_wait_seconds=next(waits)),
            ]
        )

    metrics = ExecutorMetrics(read)
    told = []
    for _ in range(3):
        (family,) = [each for each in await metrics.gather() if each.name == "lorikeet_adapter_wait_seconds"]
        told += [s.value for s in family.samples if s.labels == {"digest": "others", "for": "slot"}]
    assert told == [9.0, 9.0, 11.0]
