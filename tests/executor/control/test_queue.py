"""Accounts, the waiting queue and the policies that choose between them."""

from __future__ import annotations

from executor.control.accounts import Accounts
from executor.control.queue_policy import FairPolicy, PackPolicy, QueuePolicy
from executor.control.request import Namespace
from executor.control.request_queue import RequestQueue
from executor.control.residency import Residency
from executor.control.sequence import Sequence
from tests.support.control_world import ids, make_request


class Desk:
    """Accounts and queue, with admission reduced to its bookkeeping."""

    def __init__(self) -> None:
        self.accounts = Accounts(capacity=2)
        self.queue = RequestQueue(self.accounts)
        self.arrivals = 0

    def arrive(self, digest: str, residency: Residency = Residency.RESIDENT) -> Sequence:
        self.arrivals += 1
        request = make_request(self.arrivals, digest=digest)
        account = self.accounts.open(digest, residency)
        sequence = Sequence(
            request=request,
            key=request.key,
            namespace=Namespace(digest, ""),
            arrival=self.arrivals,
            account=account,
            emitted=ids(),
        )
        self.queue.push(sequence)
        self.check()
        return sequence

    def admit(self, policy: QueuePolicy, tokens: int = 1) -> Sequence:
        account = policy.choose(self.accounts, self.accounts.waiting > 0)
        sequence = self.queue.head(account)
        self.accounts.running[account] += 1
        self.accounts.admissions += 1
        self.queue.remove(sequence)
        self.accounts.served[account] += tokens
        self.check()
        return sequence

    def leave(self, sequence: Sequence) -> None:
        self.accounts.running[sequence.account] -= 1
        self.accounts.close_if_idle(sequence.account)
        self.check()

    def check(self) -> None:
        self.accounts.check_integrity()
        self.queue.check_integrity()


def admitted(desk: Desk, policy: QueuePolicy, count: int, tokens: int = 1) -> str:
    return " ".join(desk.admit(policy, tokens).request.digest for _ in range(count))


def test_fair_takes_turns_however_many_requests_one_adapter_has():
    desk = Desk()
    for digest in ["a"] * 6 + ["b"] * 2 + ["c"]:
        desk.arrive(digest)
    assert admitted(desk, FairPolicy(), 9) == "a b c a b a a a a"


def test_fair_counts_tokens_not_requests():
    desk = Desk()
    for _ in range(4):
        desk.arrive("long")
        desk.arrive("short")
    first = desk.admit(FairPolicy(), tokens=100)
    assert first.request.digest == "long"
    assert admitted(desk, FairPolicy(), 4, tokens=10) == "short short short short"


def test_who_was_away_cannot_save_up_service():
    desk = Desk()
    for _ in range(3):
        desk.arrive("a")
    desk.admit(FairPolicy(), tokens=1000)
    for _ in range(3):
        desk.arrive("b")
    assert admitted(desk, FairPolicy(), 4, tokens=10) == "a b a b"


def test_leaving_does_not_wipe_out_a_lead():
    desk = Desk()
    greedy, patient = desk.arrive("a"), desk.arrive("b")
    assert desk.admit(FairPolicy(), tokens=1000) is greedy
    desk.leave(greedy)
    desk.arrive("a")
    desk.arrive("b")
    assert desk.admit(FairPolicy(), tokens=10) is patient
    assert admitted(desk, FairPolicy(), 2) == "b a"


def test_newcomers_without_end_do_not_starve_who_is_ahead():
    desk, policy = Desk(), FairPolicy(max_bypass=20)
    greedy = desk.arrive("greedy")
    desk.arrive("present")
    desk.admit(policy, tokens=1000)
    waiting = desk.arrive("greedy")
    desk.leave(greedy)
    for number in range(21):
        desk.arrive(f"new-{number}")
        desk.arrive(f"more-{number}")
        newcomer = desk.admit(policy, tokens=1)
        assert newcomer is not waiting
        desk.leave(newcomer)
    assert desk.admit(policy) is waiting


def test_pack_stays_with_the_adapters_that_run():
    desk = Desk()
    desk.arrive("absent", Residency.ABSENT)
    for digest in ("a", "b", "a", "b"):
        desk.arrive(digest)
    assert admitted(desk, PackPolicy(), 5) == "a a b b absent"


def test_pack_lets_nobody_wait_for_ever():
    desk, policy = Desk(), PackPolicy(max_bypass=5)
    desk.arrive("busy")
    desk.admit(policy)
    waiting = desk.arrive("other")
    for number in range(6):
        desk.arrive("busy")
        assert desk.admit(policy) is not waiting, number
    desk.arrive("busy")
    assert desk.admit(policy) is waiting


def test_preempted_requests_come_back_to_where_their_arrival_says():
    desk, policy = Desk(), FairPolicy()
    for _ in range(5):
        desk.arrive("a")
    first, second, third = (desk.admit(policy) for _ in range(3))
    for sequence in (third, first, second):
        desk.queue.push(sequence)
        desk.check()
    account = first.account
    assert [sequence.arrival for sequence in desk.queue.of(account)] == [1, 2, 3, 4, 5]


def test_accounts_grow_and_are_reused():
    desk, policy = Desk(), FairPolicy()
    for number in range(9):
        desk.arrive(f"adapter-{number}")
    assert desk.accounts.capacity == 16
    served = [desk.admit(policy) for _ in range(9)]
    for sequence in served:
        desk.leave(sequence)
    for number in range(9, 18):
        desk.arrive(f"adapter-{number}")
    assert desk.accounts.capacity == 16
