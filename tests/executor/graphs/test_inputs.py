"""What graphs read, in one buffer."""

import numpy as np
import pytest
import torch

from executor.graphs.inputs import Staging, count, most, parts
from executor.graphs.shapes import LoraShape, StepShape, decoding

ADAPTED = LoraShape(tiles=5, block=16, rank=16, routers=False, ends=True, beside=False)
MIXED = StepShape(tokens=48, rows=7, decodes=7, chunks=9, lora=None)
SHAPES = [decoding(1), decoding(7, ADAPTED), MIXED, MIXED._replace(lora=ADAPTED), MIXED._replace(decodes=0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parts_share_the_buffer_but_no_place_of_it(shape: StepShape) -> None:
    buffer = np.zeros(count(shape) + 3, dtype=np.int32)
    views = parts(buffer, shape)
    for number, view in enumerate(views, start=1):
        assert not view.any()
        view[:] = number
    for number, view in enumerate(views, start=1):
        assert (view == number).all()
    assert not buffer[count(shape) :].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_device_reads_what_the_host_wrote(shape: StepShape) -> None:
    numbers = np.arange(count(shape), dtype=np.int32)
    for mine, theirs in zip(parts(numbers, shape), parts(torch.from_numpy(numbers), shape), strict=True):
        assert theirs.tolist() == mine.tolist()
    for part in parts(torch.from_numpy(numbers), shape)[1:]:
        assert part.is_contiguous()
        assert part.storage_offset() % 4 == 0
    for row in parts(torch.from_numpy(numbers), shape).tokens:
        assert row.storage_offset() % 4 == 0


def test_parts_are_as_large_as_the_shape_says() -> None:
    staging = Staging(1000, torch.device("cpu"))
    assert [view.shape for view in staging.begin(MIXED)] == [
        (4, 48),
        (4, 7),
        (4, 9),
        (2, 7),
        (3, 0),
        (3, 0),
        (2, 48),
    ]
    adapted = staging.begin(SHAPES[3])
    assert [view.shape for view in adapted[4:]] == [(3, 5), (3, 7), (2, 48)]
    decodes = staging.begin(SHAPES[1])
    assert [view.shape for view in decodes[2:]] == [(4, 0), (2, 0), (3, 5), (3, 0), (2, 7)], (
        "all rows are sampled"
    )
    assert most(MIXED) == count(MIXED._replace(lora=ADAPTED._replace(tiles=48)))


def test_inputs_begin_as_a_step_in_which_nothing_is_done_and_are_sent_as_written() -> None:
    staging = Staging(1000, torch.device("cpu"), nobody=99)
    for turn in range(5):
        inputs = staging.begin(MIXED)
        assert (inputs.tokens[3] == -1).all()
        assert (inputs.changes[0] == -1).all()
        assert (inputs.tokens[1] == 99).all()
        assert (inputs.sampled[1] == 99).all()
        zeros = (*inputs.tokens[:3:2], inputs.sampled[0], inputs.changes[1], *inputs[1:3], *inputs[4:6])
        assert not any(view.any() for view in zeros)
        for number, view in enumerate(inputs, start=turn):
            view[:] = number
        staging.send()
        for number, view in enumerate(parts(staging.on_device, MIXED), start=turn):
            assert (view == number).all()
