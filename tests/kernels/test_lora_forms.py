"""Gains, shifts and whole weights of adapters: plain torch and Triton against the reference."""

import pytest
import torch

from kernels import lora
from kernels.lora import LoraBatch, PackedSlice, SliceEntry, SliceShape, SlotTable, gpu_tiles, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 3e-5, torch.float16: 4e-3}
IN, VOCAB = 130, 19
SHAPES = (
    SliceShape(kind="linear", in_features=IN, out_features=70),
    SliceShape(kind="linear", in_features=IN, out_features=33),
    SliceShape(kind="embedding", in_features=VOCAB, out_features=40),
    SliceShape(kind="linear", in_features=IN, out_features=VOCAB),
)
PACKED = (PackedSlice(0, 0, 70), PackedSlice(1, 70, 103))
# slot -> slice -> (rank, has gain, has shift)
FORMS = {
    0: {0: (8, True, True), 1: (16, True, False), 2: (8, True, False)},
    1: {0: (0, False, True), 2: (0, False, True)},
    2: {0: (24, False, False), 1: (8, False, True), 2: (8, True, True)},
    3: {},  # brings whole weights
    4: {1: (0, True, True)},
}
SLOTS = [-1, -1, *[0] * 20, 1, 1, 2, 3, 3, 4, 4, 4]


def make_table(dtype: torch.dtype) -> SlotTable:
    """NaN wherever no tensor lies."""
    torch.manual_seed(0)
    pool = torch.full((1 << 16,), float("nan"), dtype=dtype, device=DEVICE)
    table = SlotTable(pool=pool, shapes=SHAPES, slots=5)
    free = 3

    def put(values: torch.Tensor) -> int:
        nonlocal free
        unit, place = free, table.vectors if values.dtype == torch.float32 else pool
        size = 128 // place.element_size()
        place[unit * size : unit * size + values.numel()] = values.flatten().to(DEVICE)
        free += -(-values.numel() * values.element_size() // 128) + 1
        return unit

    for slot, forms in FORMS.items():
        entries = []
        for index, (rank, has_gain, has_shift) in forms.items():
            shape = SHAPES[index]
            entries.append(
                SliceEntry(
                    slice=index,
                    rank=rank,
                    a_unit=put(torch.randn(rank, shape.in_features).to(dtype)) if rank else 0,
                    b_unit=put(torch.randn(shape.out_features, rank).to(dtype)) if rank else 0,
                    scaling=0.1 + 0.1 * slot if rank else 0.0,
                    gain_unit=put(torch.rand(shape.out_features) + 0.5) if has_gain else None,
                    shift_unit=put(torch.randn(shape.out_features)) if has_shift else None,
                )
            )
        if slot == 3:
            entries = [
                SliceEntry(slice=index, weight_unit=put(torch.randn(VOCAB, size).to(dtype)))
                for index, size in ((2, 40), (3, IN))
            ]
        table.set_row(slot, entries)
    return table


@pytest.mark.parametrize("tiled", [False, True], ids=["torch", "triton"])
@pytest.mark.parametrize("slots", [SLOTS, [1, 1], [4], [0], [3]], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gain_and_shift_of_linears(
    dtype: torch.dtype, slots: list[int], tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share in ("_SHARE_OF_K", "_LOOPED_SHARE_OF_K"):
        monkeypatch.setattr(gpu_tiles, share, 50)  # so that sums are split: gain and shift come once
    table, batch = make_table(dtype), LoraBatch.of_tokens(slots)
    x = torch.randn(len(slots), IN, device=DEVICE).to(dtype) * IN**-0.5
    expected = torch.randn(len(slots), 103, device=DEVICE).to(dtype)
    y, before = expected.clone(), expected.clone()
    lora.apply(y, x, slices=PACKED, batch=batch.tiled(table) if tiled else batch, table=table)
    reference.apply(expected, x, slices=PACKED, batch=batch, table=table)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=10 * tolerance, msg=lambda m: f"y: {m}")
    for i, slot in enumerate(slots):
        for index, start, stop in PACKED:
            same = torch.equal(y[i, start:stop], before[i, start:stop])
            assert same == (slot < 0 or index not in FORMS[slot]), f"token {i}, slice {index}"


@pytest.mark.parametrize("tiled", [False, True], ids=["torch", "triton"])
@pytest.mark.parametrize("slots", [SLOTS, [1, 1]], ids=str)
def test_gain_and_shift_of_the_embedding(slots: list[int], tiled: bool) -> None:
    table, batch = make_table(torch.float32), LoraBatch.of_tokens(slots)
    ids = torch.randint(VOCAB, (len(slots),), device=DEVICE)
    expected = torch.randn(len(slots), 40, device=DEVICE)
    y = expected.clone()
    lora.embed(y, ids, slice_index=2, batch=batch.tiled(table) if tiled else batch, table=table)
    reference.embed(expected, ids, slice_index=2, batch=batch, table=table)
    torch.testing.assert_close(y, expected, rtol=3e-5, atol=1e-4, msg=lambda m: f"y: {m}")


def test_reference_is_the_textbook_formula() -> None:
    table = make_table(torch.float32)
    x, y = torch.randn(1, IN, device=DEVICE), torch.randn(1, 70, device=DEVICE)
    weights = table.weights(0, 0)
    assert weights is not None
    assert weights.gain is not None
    assert weights.shift is not None
    expected = weights.gain * (y + 0.1 * x @ (weights.b @ weights.a).T) + weights.shift
    reference.apply(y, x, slices=PACKED[:1], batch=LoraBatch.of_tokens([0]), table=table)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_weights_brought_whole(dtype: torch.dtype) -> None:
    table, batch = make_table(dtype), LoraBatch.of_tokens(SLOTS)
    x = torch.randn(len(SLOTS), IN, device=DEVICE).to(dtype) * IN**-0.5
    ids = torch.randint(VOCAB, (len(SLOTS),), device=DEVICE)
    wide, logits = (torch.zeros(len(SLOTS), size, dtype=dtype, device=DEVICE) for size in (40, VOCAB))
    expected_wide, expected_logits = wide.clone(), logits.clone()
    lora.replace_embedding(wide, ids, slice_index=2, batch=batch, table=table)
    lora.replace_linear(logits, x, slice_index=3, batch=batch, table=table)
    reference.replace_embedding(expected_wide, ids, slice_index=2, batch=batch, table=table)
    reference.replace_linear(expected_logits, x, slice_index=3, batch=batch, table=table)
    assert torch.equal(wide, expected_wide)
    torch.testing.assert_close(logits, expected_logits, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
    touched = torch.tensor([slot == 3 for slot in SLOTS], device=DEVICE)
    assert torch.equal(wide.any(1), touched)
    assert torch.equal(logits.any(1), touched)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (SliceEntry(slice=0, gain_unit=1 << 14), "gain .* outside the pool"),
        (SliceEntry(slice=0, shift_unit=-1), "shift .* outside the pool"),
        (SliceEntry(slice=3, weight_unit=2040), "weight .* outside the pool"),
        (SliceEntry(slice=3, weight_unit=1, gain_unit=9), "a LoRA as well"),
        (SliceEntry(slice=3, weight_unit=1, rank=8), "a LoRA as well"),
    ],
)
def test_table_refuses_rows_that_do_not_fit(entry: SliceEntry, says: str) -> None:
    table = make_table(torch.float32)
    before = table.rows_SL6.clone()
    with pytest.raises(ValueError, match=says):
        table.set_row(0, [entry])
    assert torch.equal(table.rows_SL6, before)


def test_a_cleared_row_brings_nothing() -> None:
    table = make_table(torch.float32)
    table.clear_row(3)
    assert table.saved_weight(3, 2) is None
    assert not table.rows_SL6[3].any()
