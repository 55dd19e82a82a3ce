import sqlite3

import pytest

from adapter_store.concurrency.workers import Workers
from adapter_store.records.database import Database
from adapter_store.records.layouts import Layouts
from rpc.errors import LorikeetError
from tests.support.store_adapters import toy_layout


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path)
    yield database
    database.close()


@pytest.fixture
def writer():
    writer = Workers(1, "test-writer")
    yield writer
    writer.close()


def fail(*args):
    raise sqlite3.OperationalError("database or disk is full")


async def test_on_a_full_disk_an_executor_comes_back_and_another_is_told(database, writer, monkeypatch):
    layouts = Layouts(database, writer)
    ours = await layouts.register(toy_layout())
    monkeypatch.setattr(database, "save_layout", fail)
    assert await layouts.register(toy_layout()) == ours
    with pytest.raises(LorikeetError) as caught:
        await layouts.register(toy_layout(layers=1))
    assert (caught.value.code.name, caught.value.reason) == ("RESOURCE_EXHAUSTED", "CATALOG_NOT_WRITTEN")
    assert layouts.digests == {ours.digest}


async def test_the_layout_registered_last_counts_also_when_it_was_known(database, writer):
    layouts = Layouts(database, writer)
    first = await layouts.register(toy_layout())
    second = await layouts.register(toy_layout(layers=1))
    assert layouts.latest == second
    await layouts.register(toy_layout())
    assert layouts.latest == Layouts(database, writer).latest == first
