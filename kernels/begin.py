"""What a step's other kernels read, out of what the host has sent: the first kernel of a graph.

Semantics: `ids[t] = last_sampled[rows[t]] where sent_ids[t] < 0 else sent_ids[t]`; and where `cells[c] >= 0`,
`page_table[cells[c]] = pages[c]`, flat.

Legend: T tokens, C changes of the page table.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import quick

_BLOCK = 128


class Begun(NamedTuple):
    """Ids and rows of a step's tokens, int64 `[T]` each."""

    ids: Tensor
    rows: Tensor


def begin(
    sent_ids_T: Tensor, rows_T: Tensor, last_sampled: Tensor, *, changes_2C: Tensor, page_table: Tensor
) -> Begun:
    """Changes the page table, int32 `[rows, pages]`, in place. Sent ids and rows are int32, last_sampled is
    int64 `[rows]`; changes are int32: cells, each of which has one page, and pages.
    """
    if not (page_table.is_contiguous() and changes_2C.is_contiguous()):
        raise ValueError("page table and changes must be contiguous")
    tokens, changes = len(sent_ids_T), changes_2C.shape[1]
    # Apart, so that both are aligned.
    begun = Begun(*(torch.empty(tokens, dtype=torch.int64, device=rows_T.device) for _ in range(2)))
    _begin_kernel[(triton.cdiv(max(tokens, changes), _BLOCK),)](
        begun.ids,
        begun.rows,
        sent_ids_T,
        rows_T,
        last_sampled,
        changes_2C,
        page_table,
        tokens,
        changes,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return begun


@quick
@triton.jit(do_not_specialize=["tokens", "changes"])
def _begin_kernel(
    ids_ptr,
    int64_rows_ptr,
    sent_ids_ptr,
    rows_ptr,
    last_sampled_ptr,
    changes_ptr,
    page_table_ptr,
    tokens,
    changes,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_token, is_change = at < tokens, at < changes
    cell = tl.load(changes_ptr + at, mask=is_change, other=-1)
    page = tl.load(changes_ptr + changes + at, mask=is_change, other=0)
    tl.store(page_table_ptr + cell, page, mask=cell >= 0)
    sent = tl.load(sent_ids_ptr + at, mask=is_token, other=0)
    row = tl.load(rows_ptr + at, mask=is_token, other=0)
    last = tl.load(last_sampled_ptr + row, mask=is_token & (sent < 0), other=0)
    tl.store(ids_ptr + at, tl.where(sent < 0, last, sent.to(tl.int64)), mask=is_token)
    tl.store(int64_rows_ptr + at, row.to(tl.int64), mask=is_token)
