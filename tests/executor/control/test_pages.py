import numpy as np
import pytest

from executor.control.pages import PagePool


def test_pages_are_handed_out_once():
    pool = PagePool(5)
    first, second = pool.take(2), pool.take(3)
    assert sorted([*first, *second]) == [0, 1, 2, 3, 4]
    assert pool.free == 0
    pool.check_integrity()


def test_the_page_freed_last_is_used_first():
    pool = PagePool(4)
    taken = pool.take(3)
    pool.give(taken[:1])
    assert pool.take(1).tolist() == taken[:1].tolist()


def test_a_page_that_a_step_may_touch_waits_for_it():
    pool = PagePool(4)
    taken = pool.take(4)
    pool.give_after(7, taken[:1])
    pool.give_after(8, taken[1:3])
    pool.retire(6)
    assert (pool.free, pool.waiting) == (0, 3)
    pool.retire(7)
    assert (pool.free, pool.waiting) == (1, 2)
    pool.retire(9)
    assert (pool.free, pool.waiting) == (3, 0)
    pool.check_integrity()


def test_more_pages_than_there_are_is_a_bug():
    pool = PagePool(2)
    with pytest.raises(AssertionError, match="3 pages wanted, 2 free"):
        pool.take(3)
    with pytest.raises(AssertionError, match="more pages given back"):
        pool.give(np.array([0], np.int32))


def test_a_page_given_twice_is_found():
    pool = PagePool(3)
    taken = pool.take(2)
    pool.give(taken[[0, 0]])
    with pytest.raises(AssertionError, match="twice"):
        pool.check_integrity()
