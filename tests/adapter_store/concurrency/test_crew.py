import threading

import pytest

from adapter_store.concurrency.crew import ALONE, Crew, Urgency
from tests.support.waiting import WAIT_SECONDS


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


def test_helpers_that_cannot_be_started_are_not_needed(monkeypatch):
    crew, done, begun = Crew(3), [], []
    start = threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        begun.append(thread)
        if len(begun) > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_one)
        crew.run(done.append, list(range(1000)))
    # Nobody goes on with a piece that has been returned from.
    assert sorted(done) == list(range(1000))
    assert len(begun) == 2
    crew.run(done.append, [1000, 1001])
    assert len(done) == 1002
    crew.close()


def test_a_piece_within_a_piece_has_no_helpers():
    crew = Crew(3)
    threads: set[str] = set()

    def work(part: int) -> None:
        if part == 0:
            crew.run(lambda _: threads.add(threading.current_thread().name), range(100))

    crew.run(work, range(2))
    # Of two at once each may have a quarter of the helpers.
    assert len(threads) == 1
    crew.run(work, range(1, 2))
    assert not crew._helped
    crew.close()


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
            assert helped.wait(WAIT_SECONDS)

    crew.run(work, list(range(100)), urgency)
    assert len(threads) == 2
    crew.close()


def test_a_helper_called_at_the_last_moment_is_waited_for(monkeypatch):
    crew, urgency = Crew(1), Urgency(is_urgent=False)
    assert crew._pool is not None
    helping, returned, release = threading.Event(), threading.Event(), threading.Event()
    done: list[int] = []
    submit = crew._pool.submit

    def slow_submit(*args):
        future = submit(*args)
        # The helper has its part; who called it has not noted it yet, and the caller of `run` is at its end.
        assert helping.wait(WAIT_SECONDS)
        returned.wait(0.2)
        return future

    def work(part: int) -> None:
        if threading.current_thread() is threading.main_thread():
            assert helping.wait(WAIT_SECONDS)
        else:
            helping.set()
            assert release.wait(WAIT_SECONDS)
        done.append(part)

    def hurry() -> None:
        urgency.raise_()
        release.set()

    monkeypatch.setattr(crew._pool, "submit", slow_submit)
    hurrying = threading.Thread(target=hurry)

    def begin(part: int) -> None:
        if not done and threading.current_thread() is threading.main_thread():
            hurrying.start()
        work(part)

    crew.run(begin, [0, 1], urgency)
    returned.set()
    assert sorted(done) == [0, 1]
    hurrying.join(WAIT_SECONDS)
    crew.close()


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_what_helpers_raise_is_raised_when_all_have_ended(kind):
    crew = Crew(2)
    at_work, done = threading.Barrier(3), []

    def work(part: int) -> None:
        if part > 2:
            done.append(part)
            return
        at_work.wait(WAIT_SECONDS)
        if threading.current_thread() is not threading.main_thread():
            raise kind(part)
        done.append(part)

    with pytest.raises(kind):
        crew.run(work, [0, 1, 2])
    assert len(done) == 1
    assert not crew._helped
    crew.run(done.append, [3, 4, 5])
    assert sorted(done[1:]) == [3, 4, 5]
    crew.close()


def test_nobody_is_called_to_a_piece_that_is_over():
    crew, urgency = Crew(1), Urgency(is_urgent=False)
    done: list[int] = []
    crew.run(done.append, [0, 1], urgency)
    urgency.raise_()
    assert done == [0, 1]
    assert not crew._helped
    crew.close()
