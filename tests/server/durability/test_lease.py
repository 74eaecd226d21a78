"""Replies wait for the store's word after a stop or a lost lease; an emptied store gets everything again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from statestream.errors import SessionMoved, StoreUnavailable
from statestream_server import housekeeping
from statestream_server.edges.http.metrics import ServerCollector
from statestream_server.engine.table import UNBOUND
from statestream_server.models.graphs import runtime
from statestream_server.sessions import lease
from statestream_server.sessions.lease import monotonic
from statestream_server.stores.base import TENANT
from tests.support.calls import DEADLINE, Caller, connected, failing
from tests.support.counter import numbers, sums
from tests.support.serving import Local, serving
from tests.support.speaker import Refusal, Speaker, fresh_id

MODEL = "counter"
LONG = 60.0
"""Seconds between checkpoints where a test is to see what happens without one."""


def stop(local: Local, seconds: float = 1000.0) -> None:
    """What a server's clock shows after it stood still for so long."""
    local.server.lease._clock = lambda: monotonic() + seconds


@contextlib.contextmanager
def replaced(local: Local, name: str, method: Callable[..., Awaitable[Any]]) -> Iterator[None]:
    """While this is entered, the server's store does something else."""
    setattr(local.server.store, name, method)
    try:
        yield
    finally:
        delattr(local.server.store, name)


async def away(*_: object) -> Any:
    raise StoreUnavailable("the test took the store away")


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'sessions.db'}"


@pytest.fixture
async def slow(models_dir: Path, store: str) -> AsyncIterator[Local]:
    """A server that has no checkpoint of its own within a test."""
    async with serving(models_dir, store=store, checkpoint_interval=LONG) as local:
        yield local


async def test_a_server_that_slept_through_a_take_over_answers_only_for_what_it_still_has(
    slow: Local, models_dir: Path, store: str
) -> None:
    moved, kept = fresh_id(), fresh_id()
    async with (
        serving(models_dir, store=store, checkpoint_interval=LONG) as other,
        Speaker(slow.channel, MODEL) as old,
        Speaker(other.channel, MODEL) as new,
    ):
        await old.open(moved, kept)
        await old.send_chunk([0, 1], [0, 0], [numbers(1), numbers(10)])
        await old.answers(2)
        await old.flush(0, 1)
        taken = await new.open_one(moved, replay_positions=b"")
        assert taken.position == 1
        assert sums(await new.step(0, 1, numbers(2))) == [3]
        await new.flush(0)
        stop(slow)
        await old.send_chunk([0, 1], [1, 1], [numbers(100), numbers(20)])
        rows = await old.rows(2)
        found = {row.handle: row for row in rows}
        assert sums(found[1]) == [30]
        late = found[0]
        assert isinstance(late, Refusal)
        assert late.failure.reason == "SESSION_MOVED"
        assert [(notice.handle, notice.failure.reason) for notice in old.notices] == [(0, "SESSION_MOVED")]
        assert slow.server.lease.fenced == 1
        assert sums(await new.step(0, 2, numbers(4))) == [7]
        assert await new.flush(0) == {0: 3}


async def test_a_server_that_was_idle_over_its_own_memory_did_not_stand_still(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(models_dir, store="memory") as local, Speaker(local.channel, MODEL) as speaker:
        stop(local)
        await speaker.open_one(fresh_id())
        assert sums(await speaker.step(0, 0, numbers(1))) == [1]
    assert "stood still" not in caplog.text


async def test_replies_wait_in_order_until_the_store_has_said_whose_they_are(slow: Local) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    heads = slow.server.store.heads

    async def late(keys: Any) -> Any:
        asked.set()
        await answer.wait()
        return await heads(keys)

    async with Speaker(slow.channel, MODEL) as speaker:
        await speaker.open(fresh_id(), fresh_id())
        await speaker.step(0, 0, numbers(1))
        with replaced(slow, "heads", late):
            stop(slow)
            await speaker.send_chunk([0], [1], [numbers(2)])
            await speaker.send_chunk([1], [0], [numbers(5)])
            await speaker.send_chunk([0], [2], [numbers(3)])
            async with asyncio.timeout(DEADLINE):
                await asked.wait()
            await slow.until(lambda: slow.table(MODEL).position.max() == 3)
            # Chunks that came together share what is held back.
            assert slow.server.lease.holding >= 2
            assert speaker._inbox.empty()
            answer.set()
            assert [sums(row) for row in await speaker.answers(3)] == [[3], [5], [6]]
        assert slow.server.lease.holding == 0
        # From now on nothing waits.
        await speaker.step(0, 3, numbers(4))


async def test_a_stop_while_the_store_is_asked_makes_its_answer_worthless(slow: Local) -> None:
    heads, calls = slow.server.store.heads, 0

    async def stopping(keys: Any) -> Any:
        nonlocal calls
        calls += 1
        found = await heads(keys)
        if calls == 1:
            stop(slow, 5000)
        return found

    async with Speaker(slow.channel, MODEL) as speaker:
        await speaker.open_one(fresh_id())
        with replaced(slow, "heads", stopping):
            stop(slow)
            assert sums(await speaker.step(0, 0, numbers(1))) == [1]
        assert calls >= 2


async def test_after_a_stop_every_session_is_asked_about_once_a_slice_at_a_time(
    slow: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_SLICE", 4)
    heads, asked = slow.server.store.heads, list[list[str]]()

    async def noted(keys: Any) -> Any:
        asked.append([key.id for key in keys])
        return await heads(keys)

    ids = [fresh_id() for _ in range(11)]
    async with Speaker(slow.channel, MODEL) as speaker:
        await speaker.open(*ids)
        table = slow.table(MODEL)
        rows = table.resident()
        with replaced(slow, "heads", noted):
            stop(slow)
            assert sums(await speaker.step(0, 0, numbers(1))) == [1]
            await slow.until(lambda: (table.confirmed[rows] == slow.server.lease._number).all())
    assert max(map(len, asked)) <= 4
    assert sorted(id for some in asked for id in some) == sorted(ids)


async def test_while_the_store_is_away_service_goes_on_and_durable_positions_stand_still(
    models_dir: Path, store: str
) -> None:
    async with (
        serving(models_dir, store=store, checkpoint_interval=0.05) as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))
        await speaker.flush(0)
        with contextlib.ExitStack() as broken:
            for name in ("save", "heads", "generation", "beat"):
                broken.enter_context(replaced(local, name, away))
            await local.until(lambda: local.server.lease._away)
            stop(local)
            for position in range(1, 30):
                answer = await speaker.step(0, position, numbers(1))
                assert sums(answer) == [position + 1]
                assert answer.durable == 1
            table = local.table(MODEL)
            # What could not be written is dirty again.
            await local.until(lambda: local.server.checkpointer.failures >= 2)
            await local.until(lambda: int(table.dirty.sum()) == 1)
        await speaker.unasked(lambda: speaker.pushed.get(0) == 30)
        assert not local.server.lease._away


async def test_what_a_failed_write_had_taken_is_written_by_the_next(slow: Local) -> None:
    async with Speaker(slow.channel, MODEL) as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))
        with replaced(slow, "save", away):
            failure = await failing(Caller(slow.channel).step(MODEL, fresh_id(), numbers(1), mode=3))
            assert failure.reason == "STORE_UNAVAILABLE"
            table = slow.table(MODEL)
            assert int(table.dirty.sum()) == 2
            assert int(table.durable.max()) == 0
        assert await speaker.flush(0) == {0: 1}


async def test_a_moved_session_leaves_memory_although_nobody_steps_it(models_dir: Path, store: str) -> None:
    session = fresh_id()
    async with (
        serving(models_dir, store=store, checkpoint_interval=0.05) as first,
        serving(models_dir, store=store, checkpoint_interval=0.05) as second,
        Speaker(first.channel, MODEL) as old,
        Speaker(second.channel, MODEL) as new,
    ):
        await old.open_one(session)
        await old.step(0, 0, numbers(1))
        await old.flush(0)
        await new.open_one(session)
        await old.unasked(lambda: bool(old.notices))
        assert old.notices[0].failure.reason == "SESSION_MOVED"
        assert first.table(MODEL).sessions == 0


async def test_a_session_that_moved_under_a_running_batch_is_dropped_once(slow: Local) -> None:
    """Its row goes when the batch is over; until then nothing of it leaves or is saved."""
    async with Speaker(slow.channel, MODEL) as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))
        table, evictions = slow.table(MODEL), slow.server.evictions
        rows = np.asarray(list(table.rows_of("").values()))
        with slow.engine_held():
            await speaker.send_chunk([0], [1], [numbers(2)])
            await slow.until(lambda: not table.lane.idle(rows).all())
            evictions.drop(table, rows, SessionMoved("a test took it"))
            evictions.drop(table, rows, SessionMoved("a test took it"))
        await slow.until(lambda: table.sessions == 0)
        (late,) = await speaker.rows(1)
        assert isinstance(late, Refusal)
        assert len(speaker.notices) == 1
        await speaker.open(fresh_id(), fresh_id(), handles=[1, 2])
        assert len(set(table.rows_of("").values())) == 2


async def test_an_emptied_store_gets_every_live_session_again(models_dir: Path, tmp_path: Path, store: str) -> None:
    sessions = [fresh_id() for _ in range(5)]
    async with (
        serving(models_dir, store=store, checkpoint_interval=0.05) as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        opened = [await speaker.open_one(session, handle) for handle, session in enumerate(sessions)]
        await speaker.send_chunk(range(5), [0] * 5, [numbers(float(n)) for n in range(5)])
        await speaker.answers(5)
        await speaker.flush(*range(5))
        with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as database, database:
            database.execute("DELETE FROM session")
            database.execute("UPDATE meta SET value = 'another' WHERE name = 'generation'")
        await local.until(lambda: local.server.lease.resets == 1)

        def stored() -> int:
            with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as database:
                return int(database.execute("SELECT count(*) FROM session").fetchone()[0])

        await local.until(lambda: stored() == 5)
        found = await local.server.store.list(TENANT, MODEL, ("", ""), 10)
        assert [(record.key.id, record.epoch, record.position, record.owner) for record in found] == sorted(
            (session, claim.epoch, 1, local.server.id) for session, claim in zip(sessions, opened, strict=True)
        )
        # Nothing was taken back that callers were told.
        assert (await speaker.step(0, 1, numbers(1))).durable == 1
        assert speaker.notices == []


async def test_a_record_that_was_set_back_is_written_again(models_dir: Path, tmp_path: Path, store: str) -> None:
    """What a failover to a replica that was behind does: an earlier save, of the same claim, is there again."""
    async with (
        serving(models_dir, store=store, checkpoint_interval=0.05) as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))
        await speaker.flush(0)
        with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as database:
            (before,) = database.execute("SELECT * FROM session").fetchall()
        await speaker.step(0, 1, numbers(2))
        await speaker.flush(0)
        with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as database, database:
            database.execute("DELETE FROM session")
            database.execute(f"INSERT INTO session VALUES ({', '.join('?' * len(before))})", before)

        async def position() -> int:
            (record,) = await local.server.store.list(TENANT, MODEL, ("", ""), 1)
            return record.position

        async with asyncio.timeout(DEADLINE):
            while await position() != 2:  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.02)
        assert speaker.notices == []


async def test_records_of_another_runtime_are_reported_once(
    models_dir: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = [fresh_id(), fresh_id()]
    async with serving(models_dir, store=store) as local, Speaker(local.channel, MODEL) as speaker:
        await speaker.open(*sessions)
        await speaker.send_chunk([0, 1], [0, 0], [numbers(1), numbers(2)])
        await speaker.answers(2)
        await speaker.flush(0, 1)
    monkeypatch.setattr(runtime, "fingerprint", lambda providers: "another machine")
    async with serving(models_dir, store=store) as local, Speaker(local.channel, MODEL) as speaker:
        with caplog.at_level(logging.WARNING, "statestream_server.sessions.ownership.placement"):
            await speaker.open_one(sessions[0])
            await speaker.open_one(sessions[1], handle=1)
        assert len([record for record in caplog.records if "fingerprint" in record.message]) == 1
        assert sums(await speaker.step(1, 1, numbers(3))) == [5]
        metrics = CollectorRegistry()
        metrics.register(ServerCollector(local.server))
        assert b"statestream_foreign_records_total 2.0" in generate_latest(metrics)


class Over(Exception):
    """The time of a test is over."""


@pytest.mark.parametrize(("retention", "hibernate_after"), [(0.0, 100.0), (100.0, 100.0), (100.0, 1000.0)])
async def test_the_used_and_the_connected_do_not_expire(
    models_dir: Path, store: str, retention: float, hibernate_after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean sessions in memory are written again before their time in the store is over."""
    session, ephemeral, passed = fresh_id(), fresh_id(), 0.0
    settings: dict[str, Any] = {
        "retention": retention, "ephemeral_retention": 100.0, "hibernate_after": hibernate_after,
        "checkpoint_interval": LONG,
    }  # fmt: skip

    async def sleep(pause: float) -> None:
        """Of housekeeping: what it left is saved, and time has passed."""
        nonlocal passed
        await local.server.checkpointer.checkpoint()
        passed += pause
        if passed > end:
            raise Over
        listed.append({record.key.id for record in await local.server.store.list("", MODEL, ("", ""), 10)})

    async def keep() -> None:
        with pytest.raises(Over):
            await housekeeping.keep(local.server)

    async with serving(models_dir, store=store, **settings) as local:
        clocks = SimpleNamespace(time=lambda: time.time() + passed, monotonic=lambda: time.monotonic() + passed)
        monkeypatch.setattr(housekeeping, "time", clocks)
        monkeypatch.setattr(housekeeping, "asyncio", SimpleNamespace(sleep=sleep))
        local.server.store._clock = lambda: time.time() + passed
        async with connected(local.address) as channel, Speaker(channel, MODEL) as speaker:
            await speaker.open_one(session)
            await speaker.open_one(ephemeral, handle=1, ephemeral=True)
            await speaker.send_chunk([0, 1], [0, 0], [numbers(1), numbers(1)])
            await speaker.answers(2)
            listed, end = list[set[str]](), 300.0
            await keep()
            assert len(listed) >= 12
            assert all(ephemeral in ids for ids in listed)
            assert all(session in ids for ids in listed)
        await local.until(lambda: not (local.table(MODEL).owner != UNBOUND).any())
        end = 600.0
        await keep()
        assert ephemeral not in local.table(MODEL).rows_of("")
        assert ephemeral not in listed[-1]
