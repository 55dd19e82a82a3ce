"""Layouts over gRPC, against a real store."""

import grpc
import pytest

from lorikeet.v1 import layout_pb2
from rpc.digests import layout_digest
from rpc.errors import from_rpc
from tests.support.store_adapters import toy_layout
from tests.support.store_ready import running_ready


@pytest.fixture
async def ready(tmp_path):
    async with running_ready(tmp_path) as ready:
        yield ready


async def test_registering_a_layout_says_where_the_arena_is(ready):
    response = await ready.running.register()
    assert response.layout_digest == layout_digest(toy_layout())
    path = ready.running.config.arena_folder / response.arena_file
    assert path.stat().st_size == response.arena_bytes == 1 << 20


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"pack_format_version": 1}, "UNIMPLEMENTED", "PACK_FORMAT"),
        ({"tensor_parallel_size": 2}, "UNIMPLEMENTED", "TENSOR_PARALLEL"),
        ({"alignment_bytes": 64}, "INVALID_ARGUMENT", "BAD_LAYOUT"),
        ({"compute_dtype": 0}, "INVALID_ARGUMENT", "BAD_LAYOUT"),
        ({"compute_dtype": 77}, "INVALID_ARGUMENT", "BAD_LAYOUT"),
        ({"rank_multiple": 0}, "INVALID_ARGUMENT", "BAD_LAYOUT"),
        ({"max_rank": 0}, "INVALID_ARGUMENT", "BAD_LAYOUT"),
    ],
)
async def test_layouts_that_cannot_be_served_are_refused(ready, change, code, reason):
    layout = toy_layout()
    for field, value in change.items():
        setattr(layout, field, value)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ready.running.register(layout)
    error = from_rpc(caught.value)
    assert (error.code.name, error.reason) == (code, reason)


@pytest.mark.parametrize("spoil", ["none", "twice", "no name", "no inputs", "kind"])
async def test_slices_that_make_no_sense_are_refused(ready, spoil):
    layout = toy_layout()
    match spoil:
        case "none":
            layout.ClearField("slices")
        case "twice":
            layout.slices.append(layout.slices[0])
        case "no name":
            layout.slices[0].module = ""
        case "no inputs":
            layout.slices[0].in_features = 0
        case _:
            layout.slices[0].kind = layout_pb2.SLICE_KIND_UNSPECIFIED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ready.running.register(layout)
    assert from_rpc(caught.value).reason == "BAD_LAYOUT"
