"""The first kernel of a step, beside its definition in plain torch."""

import pytest
import torch

from kernels.begin import begin

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("tokens", "changes"), [(1, 1), (5, 3), (128, 128), (300, 200), (7, 0)])
def test_ids_come_from_the_host_or_the_step_before_and_pages_change(tokens: int, changes: int) -> None:
    torch.manual_seed(tokens)
    rows, columns = 9, 40
    sent = torch.randint(-1, 50, (tokens,), dtype=torch.int32, device=DEVICE)
    row = torch.randint(0, rows, (tokens,), dtype=torch.int32, device=DEVICE)
    last = torch.randint(100, 200, (rows,), device=DEVICE)
    table = torch.randint(0, 1000, (rows, columns), dtype=torch.int32, device=DEVICE)
    change = torch.zeros(2, changes, dtype=torch.int32, device=DEVICE)
    change[0] = torch.randperm(rows * columns, device=DEVICE)[:changes]
    change[1] = torch.arange(2000, 2000 + changes)
    change[0, ::3] = -1
    expected = table.clone().view(-1)
    cells = change[:, change[0] >= 0].long()
    expected[cells[0]] = cells[1].int()
    ids, rows_T = begin(sent, row, last, changes_2C=change, page_table=table)
    assert torch.equal(ids, torch.where(sent < 0, last[row.long()], sent.long()))
    assert torch.equal(rows_T, row.long())
    assert torch.equal(table.view(-1), expected)
