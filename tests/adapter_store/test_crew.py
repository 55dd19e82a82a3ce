import threading

import pytest

from adapter_store.crew import ALONE, Crew, Urgency


def test_every_part_is_done_once():
    crew = Crew(3)
    done: list[int] = []
    crew.run(done.append, list(range(1000)))
    assert sorted(done) == list(range(1000))
    ALONE.run(done.append, [1000])
    assert len(done) == 1001
    crew.close()


def test_an_error_stops_the_rest_and_is_raised():
    done: list[int] = []

    def work(part: int) -> None:
        if part == 5:
            raise ValueError("five")
        done.append(part)

    with pytest.raises(ValueError, match="five"):
        ALONE.run(work, list(range(10)))
    assert done == [0, 1, 2, 3, 4]


def test_nobody_helps_with_a_hint_until_somebody_waits_for_it():
    crew, urgency = Crew(1), Urgency(is_urgent=False)
    helped = threading.Event()
    threads: set[str] = set()

    def work(part: int) -> None:
        name = threading.current_thread().name
        threads.add(name)
        if name.startswith("store-crew"):
            helped.set()
        elif part == 50:
            assert not helped.is_set()
            urgency.raise_()
            assert helped.wait(20)

    crew.run(work, list(range(100)), urgency)
    assert len(threads) == 2
    crew.close()
