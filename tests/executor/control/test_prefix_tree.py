import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.control.prefix_tree import NO_PAGE, PrefixTree
from executor.control.request import Namespace
from tests.support.control_world import ids

BASE = Namespace("", "")
RED, RED_SALTED, BLUE = Namespace("red", ""), Namespace("red", "salt"), Namespace("blue", "")


def keep(tree: PrefixTree, namespace: Namespace, tokens: str, first_page: int) -> list[int]:
    """Inserts a prompt of two-letter pages and unlocks it; its pages are numbered from first_page."""
    pages = list(range(first_page, first_page + len(tokens) // 2))
    kept = tree.insert(namespace, NO_PAGE, text(tokens), pages)
    tree.lock(kept[-1])
    tree.unlock(kept[-1])
    tree.check_integrity()
    return kept


def text(tokens: str) -> np.ndarray:
    return ids(*map(ord, tokens))


def find(tree: PrefixTree, namespace: Namespace, tokens: str) -> list[int]:
    return tree.match(namespace, text(tokens), len(tokens) // 2)


@pytest.fixture
def tree() -> PrefixTree:
    return PrefixTree(pages=20, page_size=2)


def test_the_longest_prefix_of_full_pages_is_found(tree: PrefixTree):
    keep(tree, BASE, "aabbcc", 0)
    assert find(tree, BASE, "aabbcc") == [0, 1, 2]
    assert find(tree, BASE, "aabbcx") == [0, 1]
    assert find(tree, BASE, "aab") == [0]
    assert find(tree, BASE, "xabbcc") == []
    assert tree.match(BASE, text("aabbcc"), 1) == [0], "no more than asked for"


def test_branches_share_their_trunk(tree: PrefixTree):
    keep(tree, BASE, "aabbcc", 0)
    assert keep(tree, BASE, "aabbdd", 10) == [0, 1, 12]
    assert tree.size == 4


def test_namespaces_share_nothing(tree: PrefixTree):
    keep(tree, RED, "aabb", 0)
    for namespace in (BASE, BLUE, RED_SALTED):
        assert find(tree, namespace, "aabb") == []


def test_a_match_changes_nothing(tree: PrefixTree):
    keep(tree, BASE, "aabb", 0)
    keep(tree, BASE, "ccdd", 2)
    for _ in range(3):
        find(tree, BASE, "aabb")
    assert tree.evict(1).tolist() == [1], "still the least recently used"


def test_locked_paths_stay(tree: PrefixTree):
    keep(tree, BASE, "aabbcc", 0)
    tree.lock(1)
    assert tree.evictable == 1
    assert tree.evict(10).tolist() == [2]
    tree.unlock(1)
    assert tree.evict(10).tolist() == [1, 0]
    assert tree.size == 0


def test_locks_count(tree: PrefixTree):
    keep(tree, BASE, "aabbcc", 0)
    tree.lock(2)
    tree.lock(2)
    tree.lock(1)
    tree.unlock(2)
    assert tree.evictable == 0
    tree.unlock(2)
    assert tree.evictable == 1
    tree.unlock(1)
    assert tree.evictable == 3
    tree.check_integrity()
    with pytest.raises(AssertionError, match="more often"):
        tree.unlock(1)


def test_leaves_go_in_the_order_of_last_use(tree: PrefixTree):
    keep(tree, BASE, "aabb", 0)
    keep(tree, BASE, "aacc", 10)
    keep(tree, BLUE, "ddee", 5)
    tree.lock(1)
    tree.unlock(1)
    assert tree.evict(3).tolist() == [11, 6, 5], "0 has a child, 1 was used last"
    assert tree.evict(3).tolist() == [1, 0]


def test_dropping_a_digest_takes_all_its_salts_and_nothing_else(tree: PrefixTree):
    keep(tree, RED, "aabb", 0)
    keep(tree, RED_SALTED, "aabb", 2)
    keep(tree, BLUE, "aabb", 4)
    tree.lock(2)
    assert sorted(tree.drop("red").tolist()) == [0, 1, 3]
    assert find(tree, RED, "aabb") == []
    assert find(tree, BLUE, "aabb") == [4, 5]
    tree.check_integrity()
    tree.unlock(2)
    assert sorted(tree.drop("red").tolist()) == [2]
    assert tree.size == 2
    tree.check_integrity()


def test_many_locks_do_not_pile_up_offers(tree: PrefixTree):
    keep(tree, BASE, "aabb", 0)
    for _ in range(10_000):
        tree.lock(1)
        tree.unlock(1)
    assert len(tree._leaves) < 200
    assert tree.evict(2).tolist() == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("mlued"), st.text("ab", min_size=2, max_size=8)), max_size=60))
def test_agrees_with_a_set_of_prefixes(operations: list[tuple[str, str]]):
    """Against a model that knows only which prefixes are cached and which are locked."""
    tree, free = PrefixTree(pages=12, page_size=2), list(range(12))
    cached: dict[str, int] = {}
    locked: list[str] = []

    def pinned(prefix: str) -> bool:
        return any(lock.startswith(prefix) for lock in locked)

    for kind, tokens in operations:
        prefixes = [tokens[:end] for end in range(2, len(tokens) + 1, 2)]
        known = [cached[prefix] for prefix in prefixes if prefix in cached]
        match kind:
            case "m":
                assert find(tree, BASE, tokens) == known
            case "l" | "i" if known:
                locked.append(prefixes[len(known) - 1])
                tree.lock(known[-1])
            case "u" if locked:
                tree.unlock(cached[locked.pop()])
            case "e":
                gone = set(tree.evict(len(tokens)).tolist())
                assert len(gone) == min(len(tokens), sum(not pinned(prefix) for prefix in cached))
                assert not [prefix for prefix, page in cached.items() if page in gone and pinned(prefix)]
                cached = {prefix: page for prefix, page in cached.items() if page not in gone}
                free += gone
            case "d" if len(free) >= len(prefixes):
                parent = known[-1] if known else NO_PAGE
                fresh = [free.pop() for _ in prefixes[len(known) :]]
                if fresh:
                    tree.lock(parent)
                    new = text(tokens)[2 * len(known) : 2 * len(prefixes)]
                    assert tree.insert(BASE, parent, new, fresh) == fresh
                    tree.lock(fresh[-1])
                    tree.unlock(fresh[-1])
                    tree.unlock(parent)
                    cached |= dict(zip(prefixes[len(known) :], fresh, strict=True))
            case _:
                pass
        tree.check_integrity()
        assert tree.size == len(cached)
        assert tree.pinned == sum(map(pinned, cached))
