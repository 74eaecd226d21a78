"""Moves on request: which streams are asked, that nothing is taken from them, and that half of them go."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from statestream import aio
from statestream.command import group
from statestream.v1 import server_pb2, server_pb2_grpc
from tests.support.calls import DEADLINE, failing
from tests.support.counter import numbers, sums
from tests.support.serving import Local, processes, serving
from tests.support.speaker import Speaker, fresh_id


@contextlib.asynccontextmanager
async def streams(local: Local, *sessions: int) -> AsyncIterator[list[Speaker]]:
    """Streams with so many sessions each, opened one after the other: the first is the quietest."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for count in sessions:
            speaker = await stack.enter_async_context(Speaker(local.channel, "counter"))
            await speaker.open(*(fresh_id() for _ in range(count)))
            found.append(speaker)
        yield found


async def ask(local: Local, share: float, model: str = "") -> tuple[int, int]:
    stub = server_pb2_grpc.ServerServiceStub(local.channel)
    asked = await stub.MoveSessions(server_pb2.MoveSessionsRequest(model=model, share=share))
    return asked.sessions, asked.streams


@pytest.fixture
async def stored(models_dir: Path, tmp_path: Path) -> AsyncIterator[Local]:
    async with serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=600.0) as local:
        yield local


async def test_whole_streams_are_asked_the_quietest_first(stored: Local) -> None:
    async with streams(stored, 2, 2, 2, 2) as speakers:
        await speakers[0].step(1, 0, numbers(1))  # Now it is the one that was used last.
        assert await ask(stored, 0.5) == (4, 2)
        for speaker in speakers[1:3]:
            await speaker.unasked(lambda speaker=speaker: speaker.moves)
            assert [sorted(handles) for handles in speaker.moves] == [[0, 1]]
        assert not speakers[0].moves
        assert not speakers[3].moves


async def test_of_a_stream_that_is_too_large_the_quietest_sessions_are_named(stored: Local) -> None:
    async with streams(stored, 5) as (speaker,):
        for handle in (0, 2, 4):
            await speaker.step(handle, 0, numbers(1))
        assert await ask(stored, 0.4) == (2, 1)
        await speaker.unasked(lambda: speaker.moves)
        assert speaker.moves == [[1, 3]]


async def test_a_session_rests_for_a_minute_and_stays_until_it_is_opened_elsewhere(stored: Local) -> None:
    async with streams(stored, 3) as (speaker,):
        assert await ask(stored, 1.0) == (3, 1)
        assert await ask(stored, 1.0) == (0, 0)
        for position in range(3):
            assert sums(await speaker.step(0, position, numbers(1))) == [position + 1]
        assert not speaker.notices
        table = stored.table("counter")
        table.asked[table.owner > 0] -= 61
        assert await ask(stored, 1.0) == (3, 1)


async def test_sleepers_go_along_with_the_whole_of_their_stream(stored: Local) -> None:
    async with streams(stored, 3) as (speaker,):
        await speaker.flush(0, 1, 2)
        table = stored.table("counter")
        row = int(np.flatnonzero((table.owner > 0) & (table.handle == 1))[0])
        stored.server.sessions.hibernation.hibernate(table, np.asarray([row]))
        assert await ask(stored, 1.0) == (2, 1)
        await speaker.unasked(lambda: speaker.moves)
        assert [sorted(handles) for handles in speaker.moves] == [[0, 1, 2]]
        await speaker.step(1, 0, numbers(1))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
async def test_what_is_no_share_is_refused(stored: Local, share: float) -> None:
    assert (await failing(ask(stored, share))).reason == "BAD_FRAME"


async def test_models_are_asked_by_name_and_servers_without_a_store_not_at_all(stored: Local, local: Local) -> None:
    async with streams(stored, 2):
        assert await ask(stored, 1.0, "gru") == (0, 0)
        assert await ask(stored, 1.0, "counter") == (2, 1)
    for where, model, reason in ((stored, "nowhere", "MODEL_NOT_FOUND"), (local, "", "UNSUPPORTED")):
        assert (await failing(ask(where, 1.0, model))).reason == reason


@pytest.mark.slow
async def test_half_of_the_streams_go_to_the_replica_that_joined(models_dir: Path, tmp_path: Path) -> None:
    """All step on meanwhile: none of their steps is lost, and outputs are those of sessions that stay, bit for bit."""
    options = ("--store", f"sqlite:{tmp_path / 's.db'}", "--checkpoint-interval", "0.2", "--log-level", "warning")
    inputs = np.random.default_rng(0).normal(size=(8, 3, 50, 2)).astype(np.float32)
    with processes(models_dir, *options, count=2) as (first, second):
        went, moved = dict[int, str](), asyncio.Event()
        outputs: list[list[np.ndarray]] = [[] for _ in range(8)]
        opened = asyncio.Barrier(9)

        def goes(number: int, address: str) -> None:
            went[number] = address
            if len(went) == 4:
                moved.set()

        async def caller(number: int) -> None:
            """A client with one stream: steps three sessions until half of the streams have gone, and ten more."""
            addresses = f"{first.address},{second.address}"
            async with await aio.connect(addresses, on_reconnect=partial(goes, number)) as client:
                pool = await client.sessions("gru", ids=[f"{number}-{row}" for row in range(3)])
                more = 0
                while more < 10:
                    at = len(outputs[number])
                    outputs[number].append(np.asarray(await pool.step(inputs[number, :, at % 50])))
                    more += moved.is_set()
                    if at == 10:
                        await opened.wait()

        async with asyncio.timeout(2 * DEADLINE), asyncio.TaskGroup() as callers:
            for number in range(8):
                callers.create_task(caller(number))
            await opened.wait()
            command = ["move", first.address, "--share", "0.5", "--json"]
            done = await asyncio.to_thread(CliRunner().invoke, group.main, command)
            assert (done.exit_code, json.loads(done.output)) == (0, {"sessions": 12, "streams": 4})
        assert [*went.values()] == [second.address] * 4
        async with await aio.connect(first.address) as client:
            for number in range(8):
                stayed = await client.sessions("gru", ids=[f"stayed-{number}-{row}" for row in range(3)])
                for at, output in enumerate(outputs[number]):
                    assert np.array_equal(np.asarray(await stayed.step(inputs[number, :, at % 50])), output)


def test_a_share_is_checked_before_it_is_asked_for() -> None:
    assert CliRunner().invoke(group.main, ["move", "localhost:1", "--share", "0"]).exit_code == 2
