"""The fuzzer of bench/, for a moment: its cases depend on the seed alone."""

import pytest

from bench.fuzz_adapters import fuzz, good_adapters
from tests.support.store_adapters import toy_pack_layout
from tests.support.store_expert_forms import write_expert_forms
from tests.support.store_experts import expert_pack_layout


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_adapters_are_read_or_refused(tmp_path, seed):
    good = good_adapters(tmp_path / "good")
    layout = toy_pack_layout(biases=True)
    outcome = fuzz(good, layout, seconds=60, cases=300, seed=seed, keep=tmp_path / "kept")
    assert outcome.failures == []
    assert outcome.accepted >= 20
    assert len(outcome.reasons) >= 8


def test_mutated_adapters_of_experts_are_read_or_refused(tmp_path):
    good = write_expert_forms(tmp_path / "good")
    outcome = fuzz(good, expert_pack_layout(), seconds=60, cases=150, seed=3, keep=tmp_path / "kept")
    assert outcome.failures == []
    assert outcome.accepted >= 20
    assert len(outcome.reasons) >= 8
