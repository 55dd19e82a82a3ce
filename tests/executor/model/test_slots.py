"""Packs in the pool, slot rows over them, and manifests that do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from executor.adapters.placements import placements_of
from executor.adapters.pool import PackCopy
from executor.model.config import ModelConfig
from executor.model.layout import build_layout, named_slices
from executor.model.pack_rows import PackRows
from executor.model.slots import AdapterPool
from kernels.lora import SliceEntry, SliceShape, SlotTable
from lorikeet.v1 import layout_pb2
from tests.support.engine_rig import Pack, bring, random_pack
from tests.support.oracle_adapters import make_adapters, pack_adapter
from tests.support.oracle_checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig.load(make_checkpoint(tmp_path_factory.getbasetemp() / "slots", "qwen3"))


@pytest.fixture(scope="module")
def pack(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    base = tmp_path_factory.getbasetemp()
    folder = make_adapters(base / "slots", base / "slots_adapters", ["ends"])["ends"]
    return pack_adapter(folder, layout_of(config))


def layout_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> layout_pb2.Layout:
    return build_layout(
        config, base_digest="b", base_name="tiny", dtype=dtype, max_rank=64, max_pack_bytes=1 << 20
    )


def pool_of(config: ModelConfig, units: int = 400) -> AdapterPool:
    return AdapterPool(config, units=units, slots=3, dtype=torch.float32)


def test_layout_lists_slices_in_pack_order(config: ModelConfig) -> None:
    layout = layout_of(config, torch.bfloat16)
    assert layout.compute_dtype == layout_pb2.TENSOR_TYPE_BFLOAT16
    assert [s.module for s in layout.slices][6:9] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.k_proj",
    ]
    assert [s.module for s in layout.slices][-2:] == ["model.embed_tokens", "lm_head"]
    assert [(s.in_features, s.out_features) for s in layout.slices[:4]] == [
        (64, 128),
        (64, 64),
        (64, 64),
        (128, 64),
    ]
    embedding, head = layout.slices[-2:]
    assert embedding.kind == layout_pb2.SLICE_KIND_EMBEDDING
    assert (embedding.in_features, embedding.out_features, head.out_features) == (256, 64, 256)
    assert len(named_slices(config)) == 7 * config.layers + 2
    assert [s.module for s in layout.slices if s.is_replaceable] == ["model.embed_tokens", "lm_head"]


@pytest.mark.parametrize(
    ("family", "modules"),
    [("qwen3", ""), ("qwen2", "qkv"), ("llama", "qkvogud")],
)
def test_layout_says_which_modules_have_a_bias(family: str, modules: str, tmp_path: Path) -> None:
    layout = layout_of(ModelConfig.load(make_checkpoint(tmp_path, family)))
    biased = [s.module.rpartition(".")[2] for s in layout.slices if s.has_bias]
    assert "".join(name[0] for name in biased) == modules * 2


def test_a_pack_is_found_where_it_was_written(config: ModelConfig, pack: Pack) -> None:
    pool = pool_of(config)
    row = pool.prepare(11, pack.manifest)
    pool.write([PackCopy(2, 11, memoryview(pack.data).toreadonly(), row)])
    assert pool.table.weights(2, pack.manifest.slices[0].slice) is None
    pool.install_slot(2, row)
    place = pack.manifest.slices[0]
    weights = pool.table.weights(2, place.slice)
    assert weights is not None
    assert weights.a.shape == (256, 8)
    assert weights.scaling == place.scaling
    raw = pack.data[place.a_offset : place.a_offset + 256 * 8 * 4]
    assert weights.a.contiguous().view(torch.uint8).numpy().tobytes() == raw
    assert not weights.a[:, 6:].any(), "ranks 6 and 7 are padding"
    assert pool.table.weights(2, 0) is None
    pool.clear_slot(2)
    assert pool.table.weights(2, place.slice) is None


def test_writes_stay_inside_the_pool(config: ModelConfig, pack: Pack) -> None:
    pool = pool_of(config, units=len(pack.data) // 128)
    row = pool.prepare(0, pack.manifest)
    pool.write([PackCopy(0, 0, pack.data, row)])
    before = pool.table.pool.clone()
    for unit in (1, -1):
        copies = [PackCopy(0, at, bytes(len(pack.data)), row) for at in (0, unit)]
        with pytest.raises(ValueError, match="does not fit the pool"):
            pool.write(copies)
    assert torch.equal(pool.table.pool, before)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("slice", 99, "outside the layout"),
        ("a_offset", 64, "not aligned"),
        ("b_offset", 128 * 10_000, "reaches beyond pack"),
        ("padded_rank", 1 << 20, "reaches beyond pack"),
        ("padded_rank", 7, "multiple of 8"),
    ],
)
def test_manifests_that_do_not_fit_are_refused(
    config: ModelConfig, pack: Pack, field: str, value: int, says: str
) -> None:
    pool = pool_of(config)
    pool.install_slot(0, bring(pool, 0, 0, pack))
    before = pool.table.rows_SL6.clone()
    lying = layout_pb2.PackManifest()
    lying.CopyFrom(pack.manifest)
    setattr(lying.slices[0], field, value)
    with pytest.raises(ValueError, match=says):
        pool.prepare(0, lying)
    assert torch.equal(pool.table.rows_SL6, before)


def test_the_row_of_a_pack_that_comes_again_is_the_same_elsewhere(config: ModelConfig, pack: Pack) -> None:
    pool = AdapterPool(config, units=400, slots=3, dtype=torch.float32, triton=True)
    places, rows = placements_of(pack.manifest), PackRows(named_slices(config), 4)
    for unit_offset, known in ((3, places), (40, places), (7, placements_of(pack.manifest)), (0, places)):
        row = pool.prepare(unit_offset, pack.manifest, known)
        pool.write([PackCopy(0, unit_offset, pack.data, row)])
        fresh = pool.table.row_of(rows.of(unit_offset, pack.manifest, places))
        assert np.array_equal(row.fields, fresh.fields)
        assert np.array_equal(row.scaling, fresh.scaling)
        assert np.array_equal(row.places, fresh.places)
        assert (row.rank, row.shares, row.has_vectors) == (fresh.rank, fresh.shares, fresh.has_vectors)
        pool.install_slot(0, row)
        for index, expected in fresh.views.items():
            weights = pool.table.weights(0, index)
            assert weights is not None
            assert torch.equal(weights.a, expected.a)
            assert torch.equal(weights.b, expected.b)


def test_what_is_written_together_is_what_the_next_steps_read(config: ModelConfig) -> None:
    """More than are staged at once, in slots and ranges of others before them."""
    ranks = [8, 24, 16, 40, 8, 32, 24, 8, 16, 48, 8]
    packs = [random_pack(config, rank=rank, dtype=torch.float32) for rank in ranks]
    units = max(len(pack.data) for pack in packs) // 128
    pool = AdapterPool(config, units=11 * units, slots=11, dtype=torch.float32, triton=True)
    for turn in (packs, packs[::-1]):
        copies = [
            PackCopy(slot, units * slot, pack.data, pool.prepare(units * slot, pack.manifest))
            for slot, pack in enumerate(turn)
        ]
        pool.write(copies)
        for copy in copies:
            pool.install_slot(copy.slot, copy.row)
        for copy in copies:
            fields = pool.table.rows_SL6[copy.slot].numpy()
            assert np.array_equal(fields, copy.row.fields)
            assert np.array_equal(pool.table.scaling_SL[copy.slot].numpy(), copy.row.scaling)
            assert pool.table.traits([copy.slot]).rank == copy.row.rank == fields[:, 2].max()
            start = copy.unit_offset * 128
            written = pool.table.pool.view(torch.uint8)[start : start + len(copy.pack)]
            assert written.numpy().tobytes() == copy.pack


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_wait_for_no_step_and_the_next_one_finds_them(config: ModelConfig) -> None:
    device = torch.device("cuda")
    pack = random_pack(config, rank=16, dtype=torch.float32)
    units = len(pack.data) // 128
    pool = AdapterPool(config, units=2 * units, slots=2, dtype=torch.float32, device=device)
    running = torch.cuda.Event()
    torch.cuda._sleep(1 << 31)  # a step of a second or so
    running.record()
    rows = [bring(pool, slot, units * slot, pack) for slot in range(2)]
    assert not running.query(), "neither a copy nor its end was put behind the step"
    for slot, row in enumerate(rows):
        pool.install_slot(slot, row)
        assert np.array_equal(pool.table.rows_SL6[slot].cpu().numpy(), row.fields)
        assert np.array_equal(pool.table.scaling_SL[slot].cpu().numpy(), row.scaling)
    content = pool.table.pool.view(torch.uint8).cpu().numpy().tobytes()
    assert content == 2 * bytes(pack.data)


class Operations(TorchDispatchMode):
    """Notes what torch is asked for, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.met.append(str(func))
        return func(*args, **(kwargs or {}))


def test_what_loads_ask_of_the_device(config: ModelConfig) -> None:
    """Each operation costs the thread that asks for it more than the rest of a load does: the engine's thread
    has none, and that which copies has one for all that come together.
    """
    pack = random_pack(config, rank=8, dtype=torch.float32)
    units = len(pack.data) // 128
    pool = AdapterPool(config, units=8 * units, slots=8, dtype=torch.float32, triton=True)
    places = placements_of(pack.manifest)
    pool.prepare(0, pack.manifest, places)
    with Operations() as operations:
        rows = [pool.prepare(units * slot, pack.manifest, places) for slot in range(8)]
        assert operations.met == []
        pool.write([PackCopy(slot, units * slot, pack.data, row) for slot, row in enumerate(rows)])
        for row in rows:
            pool.complete(0, pack.manifest, row)
        assert operations.met == ["aten._foreach_copy_.default"]
        for slot, row in enumerate(rows):
            pool.install_slot(slot, row)
        pool.table.traits(range(8))
        pool.clear_slot(3)
    assert len(operations.met) == 1


def test_steps_with_a_slot_that_shows_nothing_are_refused(config: ModelConfig, pack: Pack) -> None:
    """Its row may be anybody's: nothing is written there when an adapter leaves."""
    for triton in (True, False):
        pool = AdapterPool(config, units=400, slots=3, dtype=torch.float32, triton=triton)
        pool.install_slot(1, bring(pool, 1, 0, pack))
        assert pool.batch(np.array([-1, 1]), np.array([2, 1])).slots == (1,)
        bring(pool, 2, 100, pack)  # not installed yet
        for slots in ([0], [1, 2], [-1, 0, 1]):
            with pytest.raises(RuntimeError, match="show no adapter"):
                pool.batch(np.array(slots), np.ones(len(slots), np.int64))
        pool.clear_slot(1)
        with pytest.raises(RuntimeError, match="show no adapter"):
            pool.batch(np.array([-1, 1]), np.array([2, 1]))
        assert pool.batch(np.array([-1]), np.array([2])).empty


def test_a_pack_of_another_base_is_refused(config: ModelConfig, pack: Pack) -> None:
    lying = layout_pb2.PackManifest()
    lying.CopyFrom(pack.manifest)
    with pytest.raises(ValueError, match="outside the pool"):
        pool_of(config).prepare(390, lying)


def test_a_layout_of_thousands_of_slices_takes_rows_of_any_of_them() -> None:
    shapes = [SliceShape(kind="linear", in_features=16, out_features=24)] * 5000
    pool = torch.arange(64 * 100, dtype=torch.float32)
    table = SlotTable(pool=pool, shapes=shapes, slots=1)
    table.set_row(0, [SliceEntry(slice=4999, a_unit=3, b_unit=10, rank=8, scaling=0.5, gain_unit=50)])
    weights = table.weights(0, 4999)
    assert weights is not None
    assert weights.a[1, 2] == 3 * 32 + 18
    assert weights.b[2, 1] == 10 * 32 + 17
    assert weights.gain is not None
    assert (weights.gain[5], weights.shift) == (50 * 32 + 5, None)
    assert table.rows_SL6[0, 4999].tolist() == [3, 10, 8, 51, 0, 0]
    assert not table.rows_SL6[0, :4999].any()
    assert table.weights(0, 4998) is None
