"""The Triton kernels against the reference: mixed ranks, odd sizes, untouched slices, poisoned memory."""

import random

import pytest
import torch

from kernels import lora
from kernels.lora import LoraBatch, PackedSlice, SliceEntry, SliceShape, SlotTable, gpu_tiles, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 3e-5, torch.float16: 4e-3}
IN, OUT, VOCAB = 150, (130, 40, 70), 19
RANKS = (8, 256, 16, 72, 8)
PACKED = (PackedSlice(1, 0, 130), PackedSlice(2, 130, 170), PackedSlice(3, 170, 240))
ALL = [(slot, index) for slot in range(5) for index in range(1, 5)]
UNTOUCHED = {(1, 2), (3, 1), (4, 1), (4, 2), (4, 3), (4, 4)}


def make_table(dtype: torch.dtype, outputs: tuple[int, ...] = OUT) -> SlotTable:
    """Ranks RANKS, slices in a shuffled order with gaps; slot 4 touches nothing. NaN between the weights.

    Slices from 1 on have so many `outputs`; an embedding follows.
    """
    torch.manual_seed(0)
    random.seed(0)
    shapes = (
        SliceShape(
            kind="linear", in_features=9, out_features=9
        ),  # so that slice 1 is the first of the packed
        *(SliceShape(kind="linear", in_features=IN, out_features=size) for size in outputs),
        SliceShape(kind="embedding", in_features=VOCAB, out_features=77),
    )
    table = SlotTable(
        pool=torch.full((1 << 19,), float("nan"), dtype=dtype, device=DEVICE), shapes=shapes, slots=6
    )
    unit, entries = 3, {slot: [] for slot in range(5)}
    for slot, index in random.sample(ALL, len(ALL)):
        if (slot, index) in UNTOUCHED or index >= len(shapes):
            continue
        rank, shape = RANKS[slot], shapes[index]
        places = []
        for size in (rank * shape.in_features, rank * shape.out_features):
            first = unit * 128 // dtype.itemsize
            table.pool[first : first + size] = (torch.randn(size) * rank**-0.25).to(dtype)
            places.append(unit)
            unit += -(-size * dtype.itemsize // 128) + 1
        scaling = 0.3 + 0.1 * slot + index
        entries[slot].append(
            SliceEntry(slice=index, a_unit=places[0], b_unit=places[1], rank=rank, scaling=scaling)
        )
    for slot, row in entries.items():
        table.set_row(slot, row)
    return table


BATCHES = {
    "mixed": [-1, -1, 0, 0, 0, 1, 3, 4],
    "one token": [2],
    "all slots": [0, 1, 2, 3],
    "long segments": [-1, *[0] * 70, *[1] * 17, *[2] * 5],
    "middling": [*[1] * 20, *[3] * 3],
    "untouched": [-1, 4, 4],
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES.keys())
def test_apply(dtype: torch.dtype, slots: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for share in ("_SHARE_OF_K", "_LOOPED_SHARE_OF_K"):
        monkeypatch.setattr(gpu_tiles, share, 50)  # so that sums are split at this size too
    table, batch = make_table(dtype), LoraBatch.of_tokens(slots)
    x = torch.randn(len(slots), IN, device=DEVICE).to(dtype) * IN**-0.5
    x[[i for i, slot in enumerate(slots) if slot < 0]] = float("nan")  # their own trouble stays their own
    expected = torch.randn(len(slots), 240, device=DEVICE).to(dtype)
    y, before = expected.clone(), expected.clone()
    lora.apply(y, x, slices=PACKED, batch=batch.tiled(table), table=table)
    reference.apply(expected, x, slices=PACKED, batch=batch, table=table)
    scale = expected.float().abs().mean().item() * TOLERANCE[dtype]
    torch.testing.assert_close(y, expected, rtol=TOLERANCE[dtype], atol=3 * scale, msg=lambda m: f"y: {m}")
    for i, slot in enumerate(slots):
        for index, start, stop in PACKED:
            same = torch.equal(y[i, start:stop], before[i, start:stop])
            assert same == (slot < 0 or (slot, index) in UNTOUCHED), f"token {i}, slice {index}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES.keys())
def test_embed(dtype: torch.dtype, slots: list[int]) -> None:
    table, batch = make_table(dtype), LoraBatch.of_tokens(slots)
    ids = torch.randint(VOCAB, (len(slots),), device=DEVICE)
    expected = torch.randn(len(slots), 77, device=DEVICE).to(dtype)
    y = expected.clone()
    lora.embed(y, ids, slice_index=4, batch=batch.tiled(table), table=table)
    reference.embed(expected, ids, slice_index=4, batch=batch, table=table)
    scale = expected.float().abs().mean().item() * TOLERANCE[dtype]
    torch.testing.assert_close(y, expected, rtol=TOLERANCE[dtype], atol=3 * scale, msg=lambda m: f"y: {m}")


@pytest.mark.usefixtures("exact_products")
def test_a_token_does_not_depend_on_its_neighbours() -> None:
    """Bit for bit, whatever the largest rank of the batch."""
    table = make_table(torch.float32)
    x = torch.randn(3, IN, device=DEVICE)
    together, alone = torch.zeros(3, 240, device=DEVICE), torch.zeros(1, 240, device=DEVICE)
    batch = LoraBatch.of_tokens([0, 1, 2]).tiled(table)
    lora.apply(together, x, slices=PACKED, batch=batch, table=table)
    lora.apply(alone, x[:1], slices=PACKED, batch=LoraBatch.of_tokens([0]).tiled(table), table=table)
    assert alone.abs().max() > 0.1
    assert torch.equal(together[:1], alone)


def test_tiles() -> None:
    table = make_table(torch.float32)
    batch = LoraBatch.of_tokens([-1, *[0] * 70, *[2] * 3]).tiled(table)
    assert batch.tiles is not None
    assert (batch.tiles.block, batch.tiles.rank) == (64, 16)
    assert batch.tiles.places.tolist() == [[0, 0, 2], [1, 65, 71], [64, 6, 3]]
    table.clear_row(2)
    assert table.traits([2, 3]).rank == 72
    assert table.traits([2]).rank == 0
    assert LoraBatch.of_tokens([-1]).tiled(table).tiles is None


@pytest.mark.parametrize(
    ("slices", "says"), [(PACKED[1:], "consecutive"), (PACKED[:2], "cover"), (PACKED[::2], "consecutive")]
)
def test_what_does_not_fit_is_refused(slices: tuple[PackedSlice, ...], says: str) -> None:
    table = make_table(torch.float32)
    batch = LoraBatch.of_tokens([0]).tiled(table)
    with pytest.raises(ValueError, match=says):
        lora.apply(torch.zeros(1, 240), torch.zeros(1, IN), slices=slices, batch=batch, table=table)
