"""The shrink of many tokens, whose programs add up each other's sums: narrow ranks of all slices together,
and wide ones by themselves.
"""

import pytest
import torch

from kernels import lora
from kernels.lora import LoraBatch, gpu_tiles, prompt_shrink, reference
from tests.kernels.test_lora_gpu import DEVICE, IN, PACKED, TOLERANCE, make_table

SLOTS = {"narrow": [-1, 2, 2, 4], "wide": [-1, *[0] * 20, *[1] * 3, 3, 4]}


@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS.keys())
def test_sums_of_splits(slots: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tiles, "_FEW_TOKENS", 0)
    dtype = torch.float16
    table, batch = make_table(dtype), LoraBatch.of_tokens(slots)
    tiled = batch.tiled(table)
    assert tiled.tiles is not None
    sizes = {"block": tiled.tiles.block, "count": tiled.tiles.count, "rank": tiled.tiles.rank}
    assert gpu_tiles.choose_prompt(IN, slices=len(PACKED), **sizes).splits > 1
    x = (torch.randn(len(slots), IN, device=DEVICE) * IN**-0.5).to(dtype)
    expected = torch.randn(len(slots), PACKED[-1].stop, device=DEVICE).to(dtype)
    y = expected.clone()
    reference.apply(expected, x, slices=PACKED, batch=batch, table=table)
    for _ in range(2):  # counters are left as they were found
        found = y.clone()
        lora.apply(found, x, slices=PACKED, batch=tiled, table=table)
        scale = expected.float().abs().mean().item() * TOLERANCE[dtype]
        torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=3 * scale)
    assert not prompt_shrink._counters(x.device).any()
