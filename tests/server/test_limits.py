"""Limits of a server, and that it serves on where one is met."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import session_pb2 as sessions
from statestream_server.sessions.admission.accounts import Accounts
from tests.support.arrays import tensor
from tests.support.calls import Caller, everything, failing
from tests.support.counter import numbers
from tests.support.serving import serves_on, serving
from tests.support.speaker import Opened, Refusal, Speaker, fresh_id


class TestLimits:
    async def test_too_many_sessions(self, models_dir: Path) -> None:
        """The limit counts sessions in memory; a refused frame opens none; a deleted session makes room."""
        async with (
            serving(models_dir, limits={"max_sessions": 3}) as local,
            Speaker(local.channel, "counter") as speaker,
        ):
            names = [fresh_id() for _ in range(4)]
            await speaker.send(
                open=pb.OpenFrame(
                    model="counter",
                    handles=np.arange(4, dtype="<u4").tobytes(),
                    ids=names,
                    writer=speaker.writer,
                    incarnation=1,
                )
            )
            failure = await speaker.refused()
            assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_SESSIONS")
            assert failure.retry_after
            assert local.table("counter").sessions == 0
            opened = await speaker.open(*names[:3])
            assert all(isinstance(one, Opened) for one in opened.values())
            unary = pb.StepRequest(model="counter", session_id=names[3], inputs=[tensor("x", numbers(1)["x"])])
            caller = Caller(local.channel)
            assert (await failing(caller.inference.Step(unary))).reason == "TOO_MANY_SESSIONS"
            fork = sessions.ForkSessionRequest(model="counter", session_id=names[0], fork_id=names[3])
            assert (await failing(caller.sessions.ForkSession(fork))).reason == "TOO_MANY_SESSIONS"
            await speaker.step(0, 0, numbers(1, 2, 3))
            assert (await speaker.open_one(names[1], 1)).position == 0, "a session that is there needs no room"
            await speaker.close(2, delete=True)
            assert (await speaker.open_one(names[3], 3)).created

    async def test_too_many_series(self, models_dir: Path) -> None:
        """A forecast takes a row for each series; they are bounded apart from sessions."""
        limits = {"max_sessions": 3, "max_driven_rows": 3}
        async with serving(models_dir, limits=limits) as local, Speaker(local.channel, "loop") as speaker:
            caller = Caller(local.channel)
            await speaker.open("a", "b", "c")
            for series, fine in ((4, False), (3, True)):
                history = pb.History(inputs=[tensor("x", np.ones((series, 2, 2), np.float32))])
                request = pb.ForecastRequest(model="loop", history=history, horizon=2)
                if fine:
                    assert len(await everything(caller.inference.Forecast(request))) == 2
                else:
                    failure = await failing(everything(caller.inference.Forecast(request)))
                    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_SESSIONS")
                    assert failure.retry_after
            assert local.table("loop").allocated == 3

    async def test_where_all_have_too_much_those_with_more_than_their_share_wait(self) -> None:
        accounts = Accounts(1000, 500)
        greedy, modest, fresh = accounts.open(), accounts.open(), accounts.open()
        greedy.take(900)
        assert not greedy.is_over, "there is room yet"
        modest.take(200)
        assert [account.is_over for account in (greedy, modest, fresh)] == [True, False, False]
        waiting = asyncio.create_task(greedy.room())
        await asyncio.sleep(0)
        modest.give(50)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done(), "still too much in all"
        modest.give(100)
        await waiting
        greedy.give(900)
        modest.give(50)
        assert (accounts.held, accounts.active) == (0, 0)

    async def test_who_acknowledges_nothing_is_refused_and_nobody_else(self, models_dir: Path) -> None:
        """Replies that are kept have a bound of their own; acknowledging some makes room."""
        async with (
            serving(models_dir, limits={"max_replies_bytes": 20_000}) as local,
            Speaker(local.channel, "counter") as greedy,
            Speaker(local.channel, "counter") as modest,
        ):
            await greedy.open(*(fresh_id() for _ in range(40)))
            await modest.open(fresh_id())
            refused, table = list[Refusal](), local.table("counter")
            for handle in range(40):
                await greedy.send_chunk([handle], [0], [numbers(*[1] * 250)])
                (row,) = await greedy.rows(1)
                refused += [row] if isinstance(row, Refusal) else []
                await modest.step(0, handle, numbers(1), acked=handle)
            assert {row.failure.reason for row in refused} == {"WINDOW_FULL"}
            assert 10 < len(refused) < 30
            assert table.replies.nbytes < 60_000
            for handle in range(20):
                await greedy.send_ack(handle, 250)
            local.server.intake._bounds._clock = lambda: time.time() + 1.0
            await greedy.step(39, 0, numbers(1))

    async def test_replies_of_sessions_that_nobody_has_leave_memory(self, models_dir: Path, tmp_path: Path) -> None:
        """They never count against the living; whoever comes back finds them in the store."""
        async with serving(
            models_dir,
            limits={"max_replies_bytes": 20_000},
            store=f"sqlite:{tmp_path / 's.db'}",
            checkpoint_interval=0.05,
        ) as local:
            table = local.table("counter")
            ids = [fresh_id() for _ in range(30)]
            async with Speaker(local.channel, "counter") as gone:
                for session in ids:
                    await gone.open_one(session)
                    await gone.step(0, 0, numbers(*[1] * 250))
                    await gone.close(0)
            async with Speaker(local.channel, "counter") as living:
                await living.open_one(fresh_id())
                for position in range(200):
                    await living.step(0, position, numbers(1), acked=position)
                    if table.sessions == 1:
                        break
                assert table.sessions < 30
                opened = await living.open_one(ids[0], 1, return_replies=True)
                assert opened.position == 250
                assert len(await living.answers(1)) == 1

    async def test_one_large_chunk_is_never_starved(self, models_dir: Path) -> None:
        """A chunk larger than the limit is taken when nothing else waits."""
        async with (
            serving(models_dir, limits={"max_queued_bytes": 100}) as local,
            Speaker(local.channel, "counter") as speaker,
        ):
            await speaker.open_one(fresh_id())
            await speaker.step(0, 0, numbers(*[1] * 250))

    async def test_a_message_above_the_limit_ends_only_its_call(self, models_dir: Path) -> None:
        async with serving(models_dir, limits={"max_message_bytes": 10_000}) as local:
            async with Speaker(local.channel, "counter") as speaker:
                await speaker.send(
                    chunk=pb.ChunkFrame(inputs=[tensor("x", np.zeros((20_000, 1), np.float32))], handles=b"\0" * 4)
                )
                with pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
                    await speaker.read()
            await serves_on(local.channel)
