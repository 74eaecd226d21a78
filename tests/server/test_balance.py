"""Balance: who is asked to move when a server comes, and that it has its share soon."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream import aio
from statestream_server.sessions.ownership import balance
from statestream_server.sessions.ownership.balance import SLACK, excess
from statestream_server.stores.base import Peer
from tests.support.calls import DEADLINE
from tests.support.serving import Local, process, serving
from tests.support.speaker import Speaker, fresh_id

PEERS = st.lists(st.integers(0, 10_000), min_size=1, max_size=8)


def peers_of(counts: Sequence[int]) -> list[Peer]:
    return [Peer(f"p{number}", f"host-{number}:8001", count) for number, count in enumerate(counts)]


@given(PEERS, st.data())
def test_only_who_has_more_than_others_gives_and_never_below_the_mean(counts: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(counts) - 1))
    mean = sum(counts) / len(counts)
    found = excess(f"p{place}", counts[place], peers_of(counts))
    assert found >= 0
    assert counts[place] - found > mean - 1 if found else counts[place] <= SLACK * mean + 1
    if counts[place] == min(counts):
        assert found == 0


@given(st.integers(1, 8), st.integers(0, 5000))
def test_who_is_alone_or_among_equals_gives_nothing(count: int, sessions: int) -> None:
    assert excess("p0", sessions, peers_of([sessions] * count)) == 0


@pytest.fixture
async def stored(models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Local]:
    """A server whose looks are the test's."""
    monkeypatch.setattr(balance, "SETTLING", 0.0)
    store = f"sqlite:{tmp_path / 's.db'}"
    async with serving(models_dir, store=store, checkpoint_interval=600.0, rebalance=False) as local:
        yield local


@contextlib.asynccontextmanager
async def streams(local: Local, count: int) -> AsyncIterator[list[Speaker]]:
    """Streams with two sessions each; the first is the quietest."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(await stack.enter_async_context(Speaker(local.channel, "counter")))
            await found[-1].open(fresh_id(), fresh_id())
        yield found


async def test_a_newcomer_gets_a_portion_at_a_time_and_each_stream_is_asked_once(stored: Local) -> None:
    server = stored.server
    async with streams(stored, 10) as speakers:
        assert await server.balance.look() == 0
        await server.store.beat("new", "elsewhere:8001", 60.0)
        asked = [await server.balance.look() for _ in range(4)]
        assert asked == [4, 4, 4, 4]  # A fifth of twenty each time; nobody has left yet.
        for speaker in speakers[:8]:
            await speaker.unasked(lambda speaker=speaker: speaker.moves)
        assert not speakers[8].moves
        assert not speakers[9].moves
        async with streams(stored, 1) as (late,):
            assert [await server.balance.look() for _ in range(3)] == [4, 0, 0]
            assert not late.moves
        await server.store.beat("new", "elsewhere:8001", 60.0, 20)
        await server.store.beat("newer", "third:8001", 60.0, 20)
        assert await server.balance.look() == 0  # They have as many.


async def test_the_processes_of_one_server_are_no_newcomers(stored: Local) -> None:
    async with streams(stored, 4):
        assert await stored.server.balance.look() == 0
        await stored.server.store.beat("sibling", stored.server.lease.address, 60.0)
        assert await stored.server.balance.look() == 0


async def test_who_starts_last_asks_nobody(stored: Local) -> None:
    await stored.server.store.beat("older", "elsewhere:8001", 60.0)
    async with streams(stored, 4):
        assert await stored.server.balance.look() == 0


async def test_a_newcomer_is_given_time_to_listen(stored: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "SETTLING", 60.0)
    async with streams(stored, 4):
        await stored.server.balance.look()
        await stored.server.store.beat("new", "elsewhere:8001", 60.0)
        assert await stored.server.balance.look() == 0


async def test_nobody_is_asked_for_a_newcomer_of_long_ago(stored: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "PATIENCE", 0.0)
    async with streams(stored, 4):
        await stored.server.balance.look()
        await stored.server.store.beat("new", "elsewhere:8001", 60.0)
        assert await stored.server.balance.look() == 0


@pytest.mark.slow
async def test_a_server_that_starts_later_has_its_share_soon(models_dir: Path, tmp_path: Path) -> None:
    """Clients step on meanwhile; outputs are those of sessions that stay, bit for bit."""
    options = ("--store", f"sqlite:{tmp_path / 's.db'}", "--checkpoint-interval", "0.2", "--log-level", "warning")
    inputs = np.random.default_rng(0).normal(size=(10, 3, 50, 2)).astype(np.float32)
    outputs: list[list[np.ndarray]] = [[] for _ in range(10)]
    with contextlib.ExitStack() as stack:
        second = stack.enter_context(process(models_dir, *options))
        second.kill()  # Its port is known now, and nobody listens there.
        first = stack.enter_context(process(models_dir, *options))
        where, done, opened = dict.fromkeys(range(10), first.address), asyncio.Event(), asyncio.Barrier(11)

        async def caller(number: int) -> None:
            def goes(address: str) -> None:
                where[number] = address
                if [*where.values()].count(second.address) == 5:
                    done.set()

            async with await aio.connect(f"{first.address},{second.address}", on_reconnect=goes) as client:
                pool = await client.sessions("gru", ids=[f"{number}-{row}" for row in range(3)])
                more = 0
                while more < 10:
                    at = len(outputs[number])
                    outputs[number].append(np.asarray(await pool.step(inputs[number, :, at % 50])))
                    more += done.is_set()
                    if at == 5:
                        await opened.wait()

        async with asyncio.timeout(2 * DEADLINE), asyncio.TaskGroup() as callers:
            for number in range(10):
                callers.create_task(caller(number))
            await opened.wait()
            await asyncio.to_thread(second.start)
        assert [*where.values()].count(second.address) in (5, 6)
        async with await aio.connect(first.address) as client:
            for number in range(10):
                stayed = await client.sessions("gru", ids=[f"stayed-{number}-{row}" for row in range(3)])
                for low in range(0, len(outputs[number]), 50):
                    some = np.stack(outputs[number][low : low + 50], 1)
                    assert np.array_equal(await stayed.step(inputs[number, :, : some.shape[1]]), some)
