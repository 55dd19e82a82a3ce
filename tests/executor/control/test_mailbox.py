import threading

from executor.control.mailbox import Abort, ClientGone, Hint, Mailbox
from executor.control.request import RequestKey

EVER = 3600.0
"""Seconds; no test may take so long, so that one that waits has failed."""


def test_commands_come_out_in_order():
    mailbox = Mailbox()
    assert mailbox.post([Hint("a"), Hint("b")])
    mailbox.client_gone(3)
    assert mailbox.take() == [Hint("a"), Hint("b"), ClientGone(3)]
    assert mailbox.take() == []


def test_all_or_none_when_there_is_no_room():
    mailbox = Mailbox(capacity=2)
    assert mailbox.post([Hint("a")])
    assert not mailbox.post([Hint("b"), Hint("c")])
    assert mailbox.take() == [Hint("a")]
    assert mailbox.statistics().refused == 2


def test_a_lost_client_can_always_be_reported():
    mailbox = Mailbox(capacity=1)
    assert mailbox.post([Abort(RequestKey(1, 2))])
    mailbox.client_gone(1)
    assert mailbox.take() == [Abort(RequestKey(1, 2)), ClientGone(1)]


def test_a_closed_mailbox_takes_nothing_and_keeps_nobody_waiting():
    mailbox = Mailbox()
    mailbox.close()
    assert not mailbox.post([Hint("a")])
    mailbox.wait(EVER)


def test_a_wake_up_before_the_wait_is_not_lost():
    mailbox = Mailbox()
    mailbox.wake()
    mailbox.wait(EVER)
    mailbox.take()
    mailbox.post([Hint("a")])
    mailbox.wait(EVER)


def test_many_threads_lose_no_command():
    mailbox, got = Mailbox(capacity=10**6), []

    def fill(client: int) -> None:
        for number in range(500):
            assert mailbox.post([Abort(RequestKey(client, number))])

    threads = [threading.Thread(target=fill, args=(client,)) for client in range(4)]
    for thread in threads:
        thread.start()
    while len(got) < 2000:
        mailbox.wait(EVER)
        got += mailbox.take()
    for thread in threads:
        thread.join()
    for client in range(4):
        numbers = [command.key.index for command in got if command.key.client == client]
        assert numbers == list(range(500))
