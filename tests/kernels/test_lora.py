"""The grouped torch path against the reference, and the tables that both read."""

import pytest
import torch

from kernels import lora
from kernels.lora import LoraBatch, PackedSlice, SliceEntry, SliceShape, SlotTable, reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
RANKS = (8, 24, 8, 40)
SHAPES = (
    SliceShape(kind="linear", in_features=50, out_features=33),
    SliceShape(kind="linear", in_features=50, out_features=7),
    SliceShape(kind="linear", in_features=50, out_features=7),
    SliceShape(kind="embedding", in_features=19, out_features=21),
)
PACKED = (PackedSlice(0, 0, 33), PackedSlice(1, 33, 40), PackedSlice(2, 40, 47))


def make_table(dtype: torch.dtype, *, slots: int = 4) -> SlotTable:
    """Slot s has rank RANKS[s]; slot 1 leaves slice 1 untouched, slot 3 touches nothing but slice 2."""
    torch.manual_seed(0)
    pool = torch.randn(40_000).to(dtype)
    table = SlotTable(pool=pool, shapes=SHAPES, slots=slots)
    unit = 5
    for slot, rank in enumerate(RANKS):
        entries = []
        for index, shape in enumerate(SHAPES):
            if (slot, index) == (1, 1) or (slot == 3 and index != 2):
                continue
            sizes = [rank * shape.in_features, rank * shape.out_features]
            units = [-(-size * dtype.itemsize // 128) for size in sizes]
            entries.append(
                SliceEntry(
                    slice=index, a_unit=unit, b_unit=unit + units[0], rank=rank, scaling=0.3 + slot + index
                )
            )
            unit += sum(units)
        table.set_row(slot, entries)
    return table


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "slots",
    [[-1, -1, 0, 0, 0, 1, 3], [2], [-1, -1], [0, 1, 2, 3], [1] * 9, [-1, 3, 3]],
    ids=str,
)
def test_apply_matches_reference(dtype: torch.dtype, slots: list[int]) -> None:
    table, batch = make_table(dtype), LoraBatch.of_tokens(slots)
    x = torch.randn(len(slots), 50).to(dtype)
    expected = torch.randn(len(slots), 47).to(dtype)
    y = expected.clone()
    before = expected.clone()
    lora.apply(y, x, slices=PACKED, batch=batch, table=table)
    reference.apply(expected, x, slices=PACKED, batch=batch, table=table)
    torch.testing.assert_close(y, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 30, msg="y")
    base = [i for i, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[base], before[base]), "base tokens were touched"
    for i, slot in enumerate(slots):
        assert torch.equal(y[i, 33:40], before[i, 33:40]) == (slot in (-1, 1, 3)), "columns of slice 1"


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_embed_matches_reference(dtype: torch.dtype) -> None:
    table, batch = make_table(dtype), LoraBatch.of_tokens([-1, 0, 0, 1, 2, 2, 3])
    ids = torch.tensor([3, 18, 0, 7, 7, 1, 5])
    expected = torch.randn(7, 21).to(dtype)
    y = expected.clone()
    before = expected.clone()
    lora.embed(y, ids, slice_index=3, batch=batch, table=table)
    reference.embed(expected, ids, slice_index=3, batch=batch, table=table)
    torch.testing.assert_close(y, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 30, msg="y")
    assert torch.equal(y[[0, 6]], before[[0, 6]])
    assert not torch.equal(y[1:6], before[1:6])


def test_reference_is_the_textbook_formula() -> None:
    table = make_table(torch.float32)
    x, y = torch.randn(1, 50), torch.randn(1, 33)
    weights = table.weights(2, 0)
    assert weights is not None
    expected = y + weights.scaling * (x @ weights.a.T) @ weights.b.T
    reference.apply(y, x, slices=PACKED[:1], batch=LoraBatch.of_tokens([2]), table=table)
    torch.testing.assert_close(y, expected)


def test_one_rounding_in_bfloat16() -> None:
    """The sum is taken in float32, as PEFT does: a small delta on a large output is rounded once."""
    table, batch = make_table(torch.bfloat16), LoraBatch.of_tokens([0])
    weights = table.weights(0, 0)
    assert weights is not None
    x = torch.randn(1, 50).bfloat16()
    y = (torch.randn(1, 33) * 50).bfloat16()
    delta = (x.float() @ weights.a.float().T * weights.scaling) @ weights.b.float().T
    expected = (y.float() + delta).bfloat16()
    lora.apply(y, x, slices=PACKED[:1], batch=batch, table=table)
    assert torch.equal(y, expected)


def test_poisoned_memory_outside_the_slices_is_never_read() -> None:
    table = make_table(torch.float32)
    batch = LoraBatch.of_tokens([-1, 0])
    used = torch.zeros_like(table.pool, dtype=torch.bool)
    for index in range(4):
        for matrix in (table.weights(0, index) or ())[:2]:
            assert isinstance(matrix, torch.Tensor)
            first = matrix.storage_offset()
            used[first : first + matrix.numel()] = True
    table.pool[~used] = float("nan")
    x = torch.randn(2, 50)
    x[0] = float("nan")  # a base token's own trouble stays its own
    y = torch.zeros(2, 47)
    lora.apply(y, x, slices=PACKED, batch=batch, table=table)
    assert y.isfinite().all()
    assert y[1].abs().min() > 0


def test_batch_segments() -> None:
    batch = LoraBatch.of_tokens([-1, -1, 0, 0, 0, 3])
    assert (batch.slots, batch.splits) == ((0, 3), (2, 5, 6))
    assert LoraBatch.of_tokens([-1, -1]).empty
    assert LoraBatch.of_tokens([]).empty
    assert not batch.empty
    with pytest.raises(ValueError, match="sorted"):
        LoraBatch.of_tokens([1, 0])


def test_table_rows_say_where_weights_lie() -> None:
    table = make_table(torch.float32)
    weights = table.weights(1, 0)
    assert weights is not None
    a_unit, b_unit, rank, *others = table.rows_SL6[1, 0].tolist()
    assert others == [0, 0, 0]
    assert (weights.a.storage_offset() * 4, weights.b.storage_offset() * 4, rank) == (
        a_unit * 128,
        b_unit * 128,
        24,
    )
    assert table.scaling_SL[1, 0] == pytest.approx(1.3)
    assert table.rows_SL6[1, 1].tolist() == [0] * 6
    table.clear_row(1)
    assert table.weights(1, 0) is None
    assert not table.rows_SL6[1].any()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (SliceEntry(slice=4, a_unit=0, b_unit=0, rank=8, scaling=1.0), "outside the layout"),
        (SliceEntry(slice=-1, a_unit=0, b_unit=0, rank=8, scaling=1.0), "outside the layout"),
        (SliceEntry(slice=0, a_unit=0, b_unit=0, rank=12, scaling=1.0), "multiple of 8"),
        (SliceEntry(slice=0, a_unit=0, b_unit=0, rank=0, scaling=1.0), "multiple of 8"),
        (SliceEntry(slice=0, a_unit=1249, b_unit=0, rank=8, scaling=1.0), "lora_a .* outside the pool"),
        (SliceEntry(slice=0, a_unit=0, b_unit=-1, rank=8, scaling=1.0), "lora_b .* outside the pool"),
    ],
)
def test_table_refuses_rows_that_do_not_fit(entry: SliceEntry, says: str) -> None:
    table = make_table(torch.float32)
    before = table.rows_SL6.clone()
    with pytest.raises(ValueError, match=says):
        table.set_row(0, [entry])
    assert torch.equal(table.rows_SL6, before)
    assert table.weights(0, 0) is not None


def test_table_refuses_a_slice_named_twice() -> None:
    entry = SliceEntry(slice=0, a_unit=0, b_unit=0, rank=8, scaling=1.0)
    with pytest.raises(ValueError, match="twice"):
        make_table(torch.float32).set_row(0, [entry, entry])
