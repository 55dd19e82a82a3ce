"""Kept versions give way to loads when the disk's quota is full."""

import pytest

from adapter_store.tiers.disk import folder_bytes
from lorikeet.v1 import adapters_pb2
from rpc.errors import LorikeetError, from_rpc
from tests.support.store_adapters import lora_config, lora_tensors, write_adapter
from tests.support.store_server import RunningStore, eventually, running_store
from tests.support.waiting import WAIT_SECONDS


async def load(running: RunningStore, name: str, seed: int, rank: int = 4) -> str:
    folder = running.config.roots[0] / f"s{seed}"
    write_adapter(folder, lora_tensors(seed=seed, rank=rank), lora_config(r=rank))
    return (await running.load(name, folder)).adapter.digest


async def refusal(call) -> LorikeetError:
    with pytest.raises(Exception) as caught:
        await call
    return from_rpc(caught.value)  # pyright: ignore[reportArgumentType]


def roll_back(running: RunningStore, name: str):
    return running.catalog.Rollback(adapters_pb2.RollbackAdapterRequest(name=name), timeout=WAIT_SECONDS)


async def on_disk(running: RunningStore, digests: set[str]) -> None:
    objects = running.config.data_dir / "objects"
    await eventually(lambda: {path.name for path in objects.iterdir()} == digests)


def quota(folder, adapters: float) -> int:
    """Bytes of so many adapters as `load` writes."""
    return int(adapters * folder_bytes(write_adapter(folder / "measured", lora_tensors(), lora_config(r=4))))


async def test_the_oldest_kept_version_gives_way_to_a_load(tmp_path):
    async with running_store(tmp_path, disk_bytes=quota(tmp_path, 4.5)) as running:
        await running.register()
        first = [await load(running, name, seed) for seed, name in enumerate("ab")]
        second = [await load(running, name, 2 + seed) for seed, name in enumerate("ab")]
        await on_disk(running, {*first, *second})
        new = await load(running, "c", 4)
        await on_disk(running, {first[1], *second, new})
        running.store.check_integrity()
        error = await refusal(roll_back(running, "a"))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "VERSION_NOT_KEPT")
        assert "disk_bytes" in error.message
        # The other name's is still there.
        assert (await roll_back(running, "b")).adapter.digest == first[1]
        assert running.store.catalog.get("a").digest == second[0]


async def test_what_names_point_to_is_never_given_up(tmp_path):
    async with running_store(tmp_path, disk_bytes=quota(tmp_path, 3.5)) as running:
        await running.register()
        digests = {await load(running, name, seed) for seed, name in enumerate("abc")}
        assert (await refusal(load(running, "d", 3))).reason == "DISK_QUOTA"
        await on_disk(running, digests)
        assert {pointer.digest for pointer in running.store.catalog.pointers()} == digests


async def test_nothing_is_given_up_where_it_would_not_do(tmp_path):
    async with running_store(tmp_path, disk_bytes=quota(tmp_path, 2.5)) as running:
        await running.register()
        old, new = await load(running, "a", 0), await load(running, "a", 1)
        assert (await refusal(load(running, "b", 2, rank=16))).reason == "DISK_QUOTA"
        assert (await roll_back(running, "a")).adapter.digest == old
        await on_disk(running, {old, new})


async def test_a_version_in_two_histories_goes_from_both_and_stays_gone(tmp_path):
    size = quota(tmp_path, 3.5)
    async with running_store(tmp_path, disk_bytes=size) as running:
        await running.register()
        for name in "ab":
            await load(running, name, 0)
        current = {await load(running, name, 1 + seed) for seed, name in enumerate("ab")}
        current.add(await load(running, "c", 3))
        await on_disk(running, current)
    async with running_store(tmp_path, disk_bytes=size) as running:
        for name in "ab":
            assert (await refusal(roll_back(running, name))).reason == "VERSION_NOT_KEPT"
        assert running.store.catalog.digests == current
