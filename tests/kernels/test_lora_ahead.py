"""Adapters ahead of a product: they write the bias and all tokens' rows, too, and the product is added."""

from dataclasses import replace

import pytest
import torch

from kernels import lora
from kernels.lora import LoraBatch, can_be_ahead, gpu, gpu_tiles, reference
from tests.kernels.test_lora_beside import tiles_of
from tests.kernels.test_lora_gpu import BATCHES, DEVICE, IN, PACKED, TOLERANCE, make_table


@pytest.mark.parametrize(
    ("dtype", "slots", "spare"),
    [
        (torch.float16, [-1, 0, 0, 2, 3, 4], 2),
        (torch.float16, [-1, 0, 0, 2], None),
        (torch.float16, BATCHES["untouched"], 2),
        (torch.float32, [0, 0, 1], None),
    ],
    ids=["recorded", "mixed", "untouched", "float32"],
)
def test_a_product_is_added_to_it(
    dtype: torch.dtype, slots: list[int], spare: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `spare` tiles, tokens that nobody has are not known before."""
    monkeypatch.setattr(gpu_tiles, "_SHARE_OF_K", 50)
    check(dtype, slots, spare, bias=spare is not None)


def test_a_prompt_of_one_and_base_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of K are summed by the last of their programs."""
    monkeypatch.setattr(gpu_tiles, "_FEW_TOKENS", 8)
    monkeypatch.setattr(gpu_tiles, "_LOOPED_SHARE_OF_K", 50)
    check(torch.float16, [*[-1] * 3, *[1] * 20, *[2] * 70], None, bias=True, times=2)
    check(torch.float16, [0] * 70, None, bias=False)


@pytest.mark.parametrize("slots", [[-1, 0, 0, 2, 3, 4], BATCHES["untouched"]], ids=["mixed", "untouched"])
def test_few_tokens_of_wide_ranks(slots: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shrunk as prompts are; so that they do in a test, beyond two tokens and not 32."""
    monkeypatch.setattr(gpu_tiles, "_BESIDE_TOKENS", 2)
    check(torch.float16, slots, 2, bias=True, times=2)


def test_many_adapters_of_wide_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """From two tiles on, that is, of ranks up to 64."""
    for name, value in {"_BESIDE_TOKENS": 2, "_VERY_MANY_TILES": 2, "_NARROW_RANK": 8}.items():
        monkeypatch.setattr(gpu_tiles, name, value)
    chosen: list[gpu_tiles.Cut] = []
    choose = gpu_tiles.choose
    monkeypatch.setattr(gpu, "choose", lambda *a, **k: chosen.append(choose(*a, **k)) or chosen[-1])
    for bias in (False, True):
        check(torch.float16, [-1, 0, 0, 2, 4], 2, bias=bias, rank=64)
    assert all(cut.is_streamed for cut in chosen)


def check(
    dtype: torch.dtype, slots: list[int], spare: int | None, *, bias: bool, times: int = 1, rank: int = 72
) -> None:
    table, batch = make_table(dtype), LoraBatch.of_tokens(slots)
    if spare is None:
        tiled = batch.tiled(table)
    else:
        tiled = LoraBatch(slots=(), splits=(0,), tiles=tiles_of(slots, spare=spare, rank=rank)[1])
    tiled = replace(tiled, has_vectors=False)
    assert can_be_ahead(tiled, table) == bool(tiled.tiles and tiled.tiles.rank)
    x = (torch.randn(len(slots), IN, device=DEVICE) * IN**-0.5).to(dtype)
    weight = (torch.randn(240, IN, device=DEVICE) * IN**-0.5).to(dtype)
    bias_N = torch.randn(240, device=DEVICE).to(dtype) if bias else None
    expected = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias_N is None else bias_N.double()
    ).float()
    reference.apply(expected, x, slices=PACKED, batch=batch, table=table)
    for _ in range(times):
        y = lora.ahead(x, bias_N, slices=PACKED, batch=tiled, table=table).addmm_(x, weight.t())
        torch.testing.assert_close(y.float(), expected, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


def test_what_cannot_be_ahead() -> None:
    table = make_table(torch.float16)
    tiled = LoraBatch.of_tokens([0]).tiled(table)
    assert can_be_ahead(replace(tiled, has_vectors=False), table)
    assert not can_be_ahead(tiled, table), "gains multiply what the base's product gives"
    assert not can_be_ahead(LoraBatch.of_tokens([0]), table)
    with pytest.raises(ValueError, match="without tiles"):
        lora.ahead(
            torch.zeros(1, IN).half(),
            None,
            slices=PACKED,
            batch=LoraBatch.of_tokens([0]),
            table=table,
        )
