from dataclasses import dataclass

from adapter_store.tiers.eviction import GreedyDualSizeFrequency, LeastRecentlyUsed


@dataclass(kw_only=True)
class Pack:
    pack_bytes: int = 100
    reload_seconds: float = 1.0
    uses: int = 0
    worth: float = 0.0


def use(policy, *packs):
    for pack in packs:
        pack.uses += 1
        policy.used(pack)


def test_lru_keeps_what_was_asked_for_last():
    policy, packs = LeastRecentlyUsed(), [Pack() for _ in range(3)]
    use(policy, *packs, packs[0])
    assert sorted(packs, key=lambda pack: pack.worth) == [packs[1], packs[2], packs[0]]


def test_gdsf_keeps_what_is_small_slow_and_asked_for_often():
    policy = GreedyDualSizeFrequency()
    plain, small, slow, often = Pack(), Pack(pack_bytes=50), Pack(reload_seconds=3.0), Pack()
    use(policy, plain, small, slow, often, often, often, often)
    assert [pack.worth for pack in (plain, small, slow, often)] == [0.01, 0.02, 0.03, 0.04]


def test_gdsf_forgets_old_fame():
    policy = GreedyDualSizeFrequency()
    famous = Pack()
    use(policy, *[famous] * 5)
    for _ in range(10):
        # One-time guests come and go; each that leaves raises the clock to its worth.
        guest = Pack()
        use(policy, guest)
        policy.evicted(guest)
    newcomer = Pack()
    use(policy, newcomer)
    assert newcomer.worth > famous.worth
