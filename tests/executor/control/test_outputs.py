from dataclasses import replace

import numpy as np

from executor.control.outputs import Failed, only_events
from executor.control.request import Code, RequestKey
from tests.support.control_world import ids


def test_each_client_gets_its_own_share():
    failed = Failed(key=RequestKey(8, 1), code=Code.INTERNAL, reason="R", message="m")
    outputs = replace(
        only_events((failed,)),
        step=4,
        clients=np.array([5, 9, 5]),
        indexes=np.array([50, 90, 51]),
        token_splits=ids(0, 1, 3, 4),
        token_ids=ids(10, 20, 21, 30),
        logprobs=np.array([-1, -2, -3, -4], np.float32),
        finish_reasons=np.array([0, 1, 2], np.uint8),
        wants_logprobs=np.array([True, False, True]),
        top={3: (ids(30, 31), np.zeros(2, np.float32))},
    )
    shares = dict(outputs.by_client())
    assert sorted(shares) == [5, 8, 9]
    assert shares[5].indexes.tolist() == [50, 51]
    assert shares[5].token_splits.tolist() == [0, 1, 2]
    assert shares[5].token_ids.tolist() == [10, 30]
    assert shares[5].finish_reasons.tolist() == [0, 2]
    assert list(shares[5].top) == [1]
    assert shares[9].token_splits.tolist() == [0, 2]
    assert shares[9].token_ids.tolist() == [20, 21]
    assert shares[8].events == (failed,)
    assert not len(shares[8].token_ids)
    assert not shares[5].events


def test_a_single_client_gets_the_whole_without_a_copy():
    outputs = only_events((Failed(key=RequestKey(8, 1), code=Code.INTERNAL, reason="R", message="m"),))
    assert next(iter(outputs.by_client()))[1] is outputs


def test_nothing_to_say_is_false():
    assert not only_events(())
    assert not list(only_events(()).by_client())
