"""Checkpoints in pieces: sessions go, step and fail between two captures and between two writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from statestream.errors import StoreUnavailable
from statestream_server.engine.engine import Engine
from statestream_server.sessions import checkpointer, writes
from statestream_server.stores.base import Record
from tests.support.counter import numbers, sums
from tests.support.serving import Local, serving
from tests.support.speaker import Speaker, fresh_id

MODEL = "counter"
WRITTEN, CAPTURED = 3, 2


@pytest.fixture
async def local(models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Local]:
    """A server that saves when it is told to, few rows at a time."""
    monkeypatch.setattr(writes, "_WRITTEN", WRITTEN)
    monkeypatch.setattr(writes, "_CAPTURED", CAPTURED)
    async with serving(models_dir, store=f"sqlite:{tmp_path / 'sessions.db'}", checkpoint_interval=60.0) as local:
        yield local


class Gate:
    """The store's saves, one by one: each waits until the test lets it go on."""

    def __init__(self, local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: list[Sequence[Record]] = []
        self.broken = False
        self._save = local.server.store.save
        self._go = asyncio.Semaphore(0)
        monkeypatch.setattr(local.server.store, "save", self._hold)

    async def _hold(self, records: Sequence[Record]) -> list[bool]:
        self.records.append(records)
        await self._go.acquire()
        if self.broken:
            raise StoreUnavailable("the test took the store away")
        return await self._save(records)

    def let(self, count: int = 1) -> None:
        """Lets so many saves go on."""
        for _ in range(count):
            self._go.release()


async def stepped(speaker: Speaker, count: int) -> list[str]:
    """Sessions with handles from 0 on, one step each."""
    names = [fresh_id() for _ in range(count)]
    for handle, name in enumerate(names):
        await speaker.open_one(name, handle)
        await speaker.step(handle, 0, numbers(1))
    return names


async def test_a_checkpoint_of_many_is_captured_and_written_in_pieces(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Speaker(local.channel, MODEL) as speaker:
        names = await stepped(speaker, 7)
        gate = Gate(local, monkeypatch)
        gate.let(100)
        await local.server.checkpointer.checkpoint()
        assert [len(records) for records in gate.records] == [3, 3, 1]
        assert sorted(record.key.id for records in gate.records for record in records) == sorted(names)
        table = local.table(MODEL)
        assert not table.dirty.any()
        assert (table.durable == table.position).all()


@pytest.mark.parametrize(("due", "enough", "asked"), [(False, 128, 1), (True, 1, 1), (True, 128, 4)])
async def test_a_save_waits_for_what_is_about_to_run_but_not_for_long(
    local: Local, monkeypatch: pytest.MonkeyPatch, due: bool, enough: int, asked: int
) -> None:
    """An idle engine is not waited for, nor where enough came; of one that always has something a few turns."""
    turns = list[bool]()

    def is_due(_: Engine) -> bool:
        turns.append(due)
        return due

    async with Speaker(local.channel, MODEL) as speaker:
        await stepped(speaker, 1)
        monkeypatch.setattr(checkpointer, "_ENOUGH", enough)
        monkeypatch.setattr(checkpointer, "_MOST_SECONDS", 60.0)
        monkeypatch.setattr(checkpointer, "_MOST_TURNS", 4)
        monkeypatch.setattr(Engine, "due", property(is_due))
        await local.server.checkpointer.checkpoint()
        assert len(turns) == asked
        assert not local.table(MODEL).dirty.any()


async def test_sessions_that_are_deleted_while_others_are_written_stop_no_checkpoint(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the second piece when its turn comes."""
    async with Speaker(local.channel, MODEL) as speaker:
        await stepped(speaker, 5)
        gate = Gate(local, monkeypatch)
        checkpoint = asyncio.create_task(local.server.checkpointer.checkpoint())
        await local.until(lambda: len(gate.records) == 1)
        await speaker.close(3, 4, delete=True)
        gate.let(100)
        await checkpoint
        assert [len(records) for records in gate.records] == [3, 0]
        assert sums(await speaker.step(0, 1, numbers(1))) == [2]
        assert await speaker.flush(0) == {0: 2}


@pytest.mark.parametrize("moved", range(4))
async def test_what_steps_between_two_captures_is_saved_as_it_was_at_one_of_them(
    local: Local, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Captured before its step or after it: position and state are of one moment, and the row is saved again."""
    async with Speaker(local.channel, MODEL) as speaker:
        names = await stepped(speaker, 4)
        gate = Gate(local, monkeypatch)
        checkpoint = asyncio.create_task(local.server.checkpointer.checkpoint())
        await local.until(lambda: len(gate.records) == 1)
        await speaker.step(moved, 1, numbers(10))
        gate.let(100)
        await checkpoint
        assert await speaker.flush(moved) == {moved: 2}
    async with Speaker(local.channel, MODEL) as speaker:
        opened = await speaker.open_one(names[moved])
        assert opened.position == opened.durable == 2
        assert sums(await speaker.step(0, 2, numbers(0))) == [11]


async def test_a_write_that_fails_makes_every_row_of_it_dirty_again(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Speaker(local.channel, MODEL) as speaker:
        await stepped(speaker, 5)
        gate, table = Gate(local, monkeypatch), local.table(MODEL)
        checkpoint = asyncio.create_task(local.server.checkpointer.checkpoint())
        await local.until(lambda: len(gate.records) == 1)
        assert int(table.dirty.sum()) == 2
        gate.broken = True
        gate.let()
        with pytest.raises(StoreUnavailable):
            await checkpoint
        assert int(table.dirty.sum()) == 5
        gate.broken = False
        gate.let(100)
        assert await speaker.flush(*range(5)) == dict.fromkeys(range(5), 1)
        assert not np.flatnonzero(table.dirty).size


async def test_a_session_that_is_being_written_stays_in_memory_until_the_store_has_it(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emptied store has none of them, and the write that registers them again fails: memory has the only copy."""
    async with Speaker(local.channel, MODEL) as speaker:
        await stepped(speaker, 2)
        await speaker.flush(0, 1)
        gate, table = Gate(local, monkeypatch), local.table(MODEL)
        local.server.checkpointer.unsaved.everything()
        await local.until(lambda: len(gate.records) == 1)
        await local.server.sessions.hibernate(table, float("inf"))
        assert table.sessions == 2
        gate.broken = True
        gate.let()
        await local.until(lambda: table.dirty.sum() == 2)
        gate.broken = False
        gate.let(100)
        await local.server.checkpointer.checkpoint()
        await local.server.sessions.hibernate(table, float("inf"))
        assert table.sessions == 0
        assert sums(await speaker.step(0, 1, numbers(1))) == [2]
