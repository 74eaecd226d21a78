from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator

import pytest

from statestream_server.stores.base import Key, Record, Store, Survival
from statestream_server.stores.memory import MemoryStore
from tests.server.stores.compliance import StoreCompliance
from tests.server.stores.compliance.asking import A


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = MemoryStore()
    await store.start()
    yield store
    await store.close()


class TestMemoryStore(StoreCompliance):
    pass


def test_it_promises_nothing() -> None:
    assert MemoryStore().kind == "memory"
    assert MemoryStore().survives == Survival(process_kill=False, power_loss=False, failover=False)


async def test_two_stores_are_two_generations() -> None:
    assert await MemoryStore().generation() != await MemoryStore().generation()


async def test_times_are_the_clocks() -> None:
    now = 100.0
    store = MemoryStore(clock=lambda: now)
    key = Key("t", "m", "a")
    await store.save([Record(key, 1, 1, 1, A, 1)])
    now = 200.0
    await store.save([Record(key, 1, 1, 2, A, 1), Record(Key("t", "m", "b"), 1, 1, 2, A, 1)])
    assert await store.expire(200.0, ephemeral_before=0) == 0
    now = 300.0
    await store.save([Record(key, 1, 1, 2, A, 1)])
    assert await store.expire(300.0, ephemeral_before=0) == 1
    assert [record.saved_at for record in await store.list("t", "", ("", ""), 9)] == [300.0]


async def test_a_session_costs_little_beyond_its_blob() -> None:
    store, count, blob = MemoryStore(), 20_000, bytes(100)
    tracemalloc.start()
    try:
        for start in range(0, count, 1000):
            keys = [Key("t", "m", f"station-{number}") for number in range(start, start + 1000)]
            await store.save([Record(key, 1, 1, 1, A, 1, blob=blob) for key in keys])
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / count < len(blob) + 300
