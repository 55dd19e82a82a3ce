"""How a base is built."""

import pytest
import torch

from executor.base import build


def test_a_quota_is_heeded_unless_a_number_of_threads_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen = []
    try:
        torch.set_num_threads(4)
        for asked, cores in (("4", 2), ("", 8), ("", 2)):
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
            monkeypatch.setattr(build, "usable_cores", lambda cores=cores: cores)
            build.heed_quota()
            seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen == [4, 4, 2]
