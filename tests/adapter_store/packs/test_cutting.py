"""Parts of one tensor, copied to many places of a pack."""

import numpy as np
import pytest

from adapter_store.formats.adapted import Cut
from adapter_store.formats.safetensors_files import TensorEntry
from adapter_store.packs.cutting import copy_cuts, view_of, zero_cuts
from adapter_store.packs.plan import PlacedTensor
from tests.support.store_adapters import NUMPY

E, R, WIDE = 5, 3, 7

# How E matrices lie in one tensor: the first's cut, and the step to the next.
STACKS = {
    "lora_A, expert by expert": (Cut(0, R, WIDE, WIDE, 1), R * WIDE),
    "lora_A, transposed": (Cut(0, R, WIDE, 1, E * R), R),
    "lora_B, rank by rank": (Cut(0, WIDE, R, R * E, E), 1),
    "lora_B, transposed": (Cut(0, WIDE, R, 1, E * WIDE), WIDE),
    "one that all share": (Cut(4, WIDE, R, R, 1), 0),
}


def places(cuts: list[Cut], dtype: str, stored: str, gap: int) -> tuple[list[PlacedTensor], int]:
    """Places padded by 2 rows and 1 column, with some irregular gaps, in another order than the cuts."""
    entry = TensorEntry(name="t", file="f", dtype=stored, shape=(E * R, WIDE), begin=0, nbytes=0)
    found, offset = [], 0
    for number, cut in enumerate(dict.fromkeys(cuts)):
        rows, columns = cut.rows + 2, cut.columns + 1
        nbytes = rows * columns * NUMPY[dtype].itemsize
        found.append(
            PlacedTensor(
                offset=offset,
                nbytes=nbytes,
                entry=entry,
                dtype=dtype,
                rows=rows,
                columns=columns,
                is_transposed=False,
                cut=cut,
            )
        )
        offset += -(-nbytes // 128) * 128 + (gap if number == 1 else 0)
    return found[::-1], offset + 256


def bytes_of(values: np.ndarray) -> memoryview:
    return memoryview(values.tobytes())


@pytest.mark.parametrize("gap", [0, 128])
@pytest.mark.parametrize(("dtype", "stored"), [("F32", "F32"), ("BF16", "F32"), ("F16", "BF16")])
@pytest.mark.parametrize("form", STACKS)
def test_cuts_come_to_their_places(form, dtype, stored, gap):
    first, step = STACKS[form]
    values = np.random.default_rng(0).standard_normal(E * R * WIDE, np.float32).astype(NUMPY[stored])
    cuts = [first._replace(start=first.start + expert * step) for expert in range(E)]
    found, size = places(cuts, dtype, stored, gap)
    target = bytearray(b"\xa5" * size)
    copy_cuts(bytes_of(values), found, memoryview(target))
    for placed in found:
        cut = placed.cut
        assert cut is not None
        expected = np.zeros((placed.rows, placed.columns), NUMPY[dtype])
        for i in range(cut.rows):
            for j in range(cut.columns):
                expected[i, j] = values[cut.start + i * cut.row_step + j * cut.column_step]
        assert target[placed.offset : placed.offset + placed.nbytes] == expected.tobytes()
    untouched = sum(placed.nbytes for placed in found)
    assert target.count(0xA5) >= size - untouched


def test_a_cut_beyond_its_tensor_is_an_error_not_a_read():
    found, size = places([Cut(1, R, WIDE, WIDE, 1)], "F32", "F32", 0)
    with pytest.raises((ValueError, TypeError)):
        copy_cuts(bytes_of(np.zeros(R * WIDE, np.float32)), found, memoryview(bytearray(size)))


def test_cuts_of_zeros_are_found():
    first, step = STACKS["lora_B, rank by rank"]
    cuts = [first._replace(start=expert * step) for expert in range(E)]
    values = np.ones(E * R * WIDE, np.float32)
    data = values.view(np.uint8).data
    view_of(data, values.dtype, cuts[1])[:] = -0.0
    view_of(data, values.dtype, cuts[3])[0] = 0.0
    assert zero_cuts(data, np.dtype("<u4"), 0x7FFF_FFFF, cuts) == {cuts[1]}
