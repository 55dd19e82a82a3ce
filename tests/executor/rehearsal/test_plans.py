"""Steps for limits as narrow as can be."""

import pytest

from executor.rehearsal import plans
from executor.rehearsal.plans import Limits

KINDS = (
    plans.graphs,
    plans.adapted_graphs,
    plans.large,
    plans.prompts,
    plans.spread,
    plans.adapted_large,
    plans.largest,
)


@pytest.mark.parametrize("context", [1, 2, 3, 600])
@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("tokens", [8, 700])
def test_there_is_an_end_and_no_step_beyond_the_limits(context: int, rows: int, tokens: int) -> None:
    limits = Limits(rows=rows, tokens=tokens, context=context, slots=4, page_size=16)
    for kind in KINDS:
        for step in kind(limits):
            assert len(step) <= rows, kind
            assert all(1 <= row.length <= max(1, context - 1) for row in step), kind
            assert sum(row.length for row in step) <= tokens, kind
