"""What is kept about slots, so that a step need not look at their rows, is what their rows say."""

import random

import numpy as np
import torch

from kernels.lora import SliceEntry, SliceShape, SlotRow, SlotTable

SLOTS, SLICES = 4, 5
ASKED = ((0,), (1, 2), (3, 4), (0, 1, 2, 3, 4), ())


def random_entries() -> list[SliceEntry]:
    """LoRA, gains, shifts and whole weights; some slices share a lora_b, and units may be 0."""
    entries = []
    for index in random.sample(range(SLICES), random.randrange(SLICES)):
        unit = random.randrange(3)
        forms = (
            SliceEntry(slice=index, a_unit=unit, b_unit=8 * unit, rank=random.choice([8, 16]), scaling=1.0),
            SliceEntry(slice=index, gain_unit=unit),
            SliceEntry(slice=index, shift_unit=unit),
            SliceEntry(slice=index, weight_unit=unit),
        )
        entries.append(random.choice(forms))
    return entries


def check(table: SlotTable) -> None:
    rows = table.rows_SL6.numpy()
    slots = random.choices(range(-1, SLOTS), k=random.randrange(4))
    chosen = rows[[slot for slot in slots if slot >= 0]]
    lora_b = [row[row[:, 2] > 0, 1] for row in chosen]
    traits = table.traits(slots)
    assert traits.rank == chosen[:, :, 2].max(initial=0)
    assert traits.has_vectors == chosen[:, :, 3:5].any()
    assert traits.brings_weights == chosen[:, :, 5].any()
    assert traits.shares == any(len(np.unique(units)) < len(units) for units in lora_b)
    asked = random.choice(ASKED)
    real = [slot for slot in slots if slot >= 0]
    assert table.touches(real, asked) == chosen[:, list(asked), 2].any()
    assert table.changes(real, asked) == chosen[:, list(asked)].any()


def test_slots_that_change_hands() -> None:
    """Shown another adapter, one that was moved in the pool, or none."""
    random.seed(0)
    shapes = [SliceShape(kind="linear", in_features=16, out_features=16)] * SLICES
    table = SlotTable(pool=torch.zeros(1 << 16), shapes=shapes, slots=SLOTS)
    known: list[SlotRow] = []
    for _ in range(400):
        slot = random.randrange(SLOTS)
        match random.choice(["new", "known", "none"]):
            case "new":
                known.append(table.row_of(random_entries()))
                table.show(slot, known[-1])
            case "known" if known:
                row = random.choice(known)
                table.show(slot, row if row.saved else table.moved(row, random.randrange(3)))
            case _:
                table.clear_row(slot)
        for _ in range(3):
            check(table)
