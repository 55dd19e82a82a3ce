from cli.restarts import DELAYS, SETTLED_SECONDS, RestartPolicy


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
