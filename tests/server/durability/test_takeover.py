"""Real processes and real stores: take-over, owners that sleep through it, stores that go away or are emptied."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.server.stores.redis_server import Server, redis_server, wait_until
from tests.support.calls import connected
from tests.support.counter import numbers, sums
from tests.support.serving import Process, process, processes
from tests.support.speaker import Answer, Refusal, Speaker, fresh_id

MODEL = "counter"
INTERVAL = 0.2
OPTIONS = ("--checkpoint-interval", str(INTERVAL), "--log-level", "warning")


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.service)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'sessions.db'}"
        return
    with redis_server(tmp_path) as server:
        yield server.url


@pytest.fixture
def pair(models_dir: Path, store: str) -> Iterator[tuple[Process, Process]]:
    """Two server processes on one store."""
    with processes(models_dir, "--store", store, *OPTIONS, count=2) as (one, two):
        yield one, two


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    with redis_server(tmp_path) as server:
        yield server


@contextlib.asynccontextmanager
async def speaking(server: Process) -> AsyncIterator[Speaker]:
    async with connected(server.address) as channel, Speaker(channel, MODEL) as speaker:
        yield speaker


def pass_time(seconds: float) -> None:
    """Time itself is what these tests are about: an owner's view of the store must grow old."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, "time has passed")


async def test_the_first_owner_is_fenced_on_writes_and_replies(pair: tuple[Process, Process]) -> None:
    session = fresh_id()
    async with speaking(pair[0]) as old, speaking(pair[1]) as new:
        opened = await old.open_one(session)
        assert sums(await old.step(0, 0, numbers(1, 2))) == [1, 3]
        await old.flush(0)
        taken = await new.open_one(session, mode=2)
        assert taken.position == 2
        assert taken.epoch > opened.epoch
        # Within two intervals its reply may still leave; its state never gets into the store.
        await old.send_chunk([0], [2], [numbers(1000)])
        assert sums(await new.step(0, 2, numbers(4))) == [7]
        await old.unasked(lambda: bool(old.notices))
        assert old.notices[0].failure.reason == "SESSION_MOVED"
        await old.rows(1)
        await old.send_chunk([0], [3], [numbers(1000)])
        (late,) = await old.rows(1)
        assert isinstance(late, Refusal)
        assert await new.flush(0) == {0: 3}
        pair[0].stop()
        assert sums(await new.step(0, 3, numbers(8))) == [15]
        assert await new.flush(0) == {0: 4}
        assert new.notices == []


async def test_an_owner_that_sleeps_through_a_take_over_answers_for_nothing_that_moved(
    pair: tuple[Process, Process],
) -> None:
    moved = [fresh_id() for _ in range(6)]
    kept = [fresh_id() for _ in range(2)]
    handles = list(range(8))
    async with speaking(pair[0]) as old, speaking(pair[1]) as new:
        await old.open(*moved, *kept)
        await old.send_chunk(handles, [0] * 8, [numbers(10.0 * handle) for handle in handles])
        await old.answers(8)
        await old.flush(*handles)
        pair[0].signal(signal.SIGSTOP)
        # In flight while it sleeps: for moved sessions and others, together and alone.
        await old.send_chunk(handles, [1] * 8, [numbers(1)] * 8)
        for handle in handles:
            await old.send_chunk([handle], [2], [numbers(1)])
        await new.open(*moved)
        await new.send_chunk(range(6), [1] * 6, [numbers(2)] * 6)
        assert [sums(answer) for answer in await new.answers(6)] == [[10 * n + 2] for n in range(6)]
        await new.flush(*range(6))
        pass_time(3 * INTERVAL)
        pair[0].signal(signal.SIGCONT)
        rows = await old.rows(16)
        answers = [row for row in rows if isinstance(row, Answer)]
        assert {answer.handle for answer in answers} == {6, 7}
        assert sorted((answer.handle, answer.position, sums(answer)[0]) for answer in answers) == [
            (6, 1, 61), (6, 2, 62), (7, 1, 71), (7, 2, 72),
        ]  # fmt: skip
        # Frames that were read after the first answer meet a handle that stands for nothing any more.
        reasons = {row.failure.reason for row in rows if isinstance(row, Refusal)}
        assert reasons <= {"SESSION_MOVED", "SESSION_NOT_FOUND"}
        await old.unasked(lambda: len(old.notices) == 6)
        assert {notice.failure.reason for notice in old.notices} == {"SESSION_MOVED"}
        assert sorted(notice.handle for notice in old.notices) == list(range(6))
        # One history: what the sleeper did is nowhere, also after its last save.
        assert pair[0].stop() == 0
        assert [sums(await new.step(n, 2, numbers(4))) for n in range(6)] == [[10 * n + 6] for n in range(6)]
        opened = await new.open(*kept, handles=[6, 7])
        assert [getattr(opened[handle], "position", None) for handle in (6, 7)] == [3, 3]


@pytest.mark.chaos
async def test_an_owner_that_sleeps_again_and_again(pair: tuple[Process, Process]) -> None:
    session, position, total = fresh_id(), 0, 0.0
    owners = [pair[0], pair[1]]
    async with speaking(owners[0]) as one, speaking(owners[1]) as two:
        speakers = [one, two]
        await one.open_one(session)
        for turn in range(10):
            awake, sleeper = speakers[turn % 2], speakers[(turn + 1) % 2]
            if turn:
                owners[(turn + 1) % 2].signal(signal.SIGSTOP)
                await sleeper.send_chunk([0], [position], [numbers(-1e6)])
                assert (await awake.open_one(session)).position == position
            for _ in range(5):
                total += position
                assert sums(await awake.step(0, position, numbers(position))) == [total]
                position += 1
            await awake.flush(0)
            if turn:
                pass_time(3 * INTERVAL)
                owners[(turn + 1) % 2].signal(signal.SIGCONT)
                (late,) = await sleeper.rows(1)
                assert isinstance(late, Refusal)


@pytest.mark.service
async def test_service_goes_on_while_redis_stands_still_and_catches_up(models_dir: Path, redis: Server) -> None:
    url = f"{redis.url}?timeout_ms=200"
    with process(models_dir, "--store", url, *OPTIONS) as server:
        async with speaking(server) as speaker:
            await speaker.open_one(fresh_id())
            await speaker.step(0, 0, numbers(1))
            await speaker.flush(0)
            redis.process.send_signal(signal.SIGSTOP)
            try:
                assert server.wait_for("the store does not answer, sessions go on")
                position, end = 1, time.monotonic() + 2
                while time.monotonic() < end or position < 100:
                    answer = await speaker.step(0, position, numbers(1))
                    assert (sums(answer), answer.durable) == ([position + 1], 1)
                    position += 1
                    await speaker.send_ack(0, position)
            finally:
                redis.process.send_signal(signal.SIGCONT)
            await speaker.unasked(lambda: speaker.pushed.get(0) == position)
            assert sums(await speaker.step(0, position, numbers(1))) == [position + 1]


@pytest.mark.service
async def test_live_sessions_register_again_after_a_flush(models_dir: Path, redis: Server) -> None:
    sessions = [fresh_id() for _ in range(20)]
    with processes(models_dir, "--store", redis.url, *OPTIONS, count=2) as (server, other):
        async with speaking(server) as speaker, speaking(other) as new:
            await speaker.open(*sessions)
            await speaker.send_chunk(range(20), [0] * 20, [numbers(float(n)) for n in range(20)])
            await speaker.answers(20)
            await speaker.flush(*range(20))
            redis.client.flushall()
            assert server.wait_for("emptied or replaced")
            wait_until(lambda: len(list(redis.client.scan_iter("ss:{b*}:r:*"))) == 20, "all are registered again")
            opened = await new.open(*sessions, replay_positions=np.ones(20, "<u8").tobytes())
            assert {getattr(each, "position", each) for each in opened.values()} == {1}
            assert sums(await new.step(7, 1, numbers(1))) == [8]


@pytest.mark.service
async def test_what_store_and_owner_both_lost_is_said_to_be_lost(models_dir: Path, redis: Server) -> None:
    session = fresh_id()
    with processes(models_dir, "--store", redis.url, *OPTIONS, count=2) as (server, other):
        async with speaking(server) as speaker:
            opened = await speaker.open_one(session)
            await speaker.step(0, 0, numbers(1, 2))
            await speaker.flush(0)
        server.kill()
        redis.client.flushall()
        async with speaking(other) as new:
            failure = await new.not_opened(session, replay_positions=np.asarray([2], "<u8").tobytes())
            assert (failure.code, failure.reason) == ("DATA_LOSS", "STATE_LOST")
            assert failure.metadata["position"] == "0"
            # Whoever can replay everything starts at 0, above every epoch it saw.
            again = await new.open_one(session, seen_epochs=np.asarray([opened.epoch], "<u8").tobytes())
            assert (again.position, again.created) == (0, True)
            assert again.epoch > opened.epoch
