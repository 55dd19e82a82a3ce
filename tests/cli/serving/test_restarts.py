import pytest

from cli.serving.restarts import DELAYS, SETTLED_SECONDS, RestartPolicy, advice, ending


def test_waits_longer_each_time_and_then_gives_up() -> None:
    policy = RestartPolicy()
    delays = [policy.next_delay(exit_code=-9, ready_seconds=1.0) for _ in range(len(DELAYS) + 1)]
    assert delays == [*DELAYS, None]


def test_a_settled_process_starts_afresh() -> None:
    policy = RestartPolicy()
    policy.next_delay(exit_code=1, ready_seconds=1.0)
    policy.next_delay(exit_code=1, ready_seconds=1.0)
    assert policy.next_delay(exit_code=1, ready_seconds=SETTLED_SECONDS) == DELAYS[0]


def test_one_that_never_was_ready_gets_two_more_tries() -> None:
    policy = RestartPolicy()
    assert policy.next_delay(exit_code=1, ready_seconds=None) is not None
    assert policy.next_delay(exit_code=1, ready_seconds=None) is not None
    assert policy.next_delay(exit_code=1, ready_seconds=None) is None


def test_wrong_settings_are_not_tried_again() -> None:
    assert RestartPolicy().next_delay(exit_code=2, ready_seconds=None) is None


def test_one_that_has_worked_gets_all_tries_whatever_it_says() -> None:
    """A new executor may refuse to start while the memory of the one that was killed is still taken."""
    policy = RestartPolicy()
    policy.next_delay(exit_code=-9, ready_seconds=SETTLED_SECONDS)
    delays = [policy.next_delay(exit_code=code, ready_seconds=None) for code in (2, 1, 2, 1, 2)]
    assert delays == [*DELAYS[1:], None]


@pytest.mark.parametrize(
    ("code", "words", "todo"),
    [
        (1, "ended with exit code 1", "--log-level"),
        (-9, "was ended by SIGKILL", "memory"),
        (-11, "was ended by SIGSEGV", "report"),
        (-99, "was ended by signal 99", "report"),
    ],
)
def test_ends_are_told_in_words_with_what_to_do(code: int, words: str, todo: str) -> None:
    assert ending(code) == words
    assert todo in advice(code)
