"""A store that does not answer, and a server that leaves."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any, cast

import pytest

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import session_pb2 as sessions
from statestream_server.edges.grpc import port
from statestream_server.edges.grpc import table as methods
from statestream_server.edges.grpc.stream import Stream
from statestream_server.settings import Durability
from tests.support.calls import DEADLINE, Caller, connected, failing, failure_of
from tests.support.counter import numbers, sums
from tests.support.serving import Local, free_settings, serving
from tests.support.speaker import Speaker, joined


class Outage:
    """While entered, the store of a server does not answer."""

    def __init__(self, local: Local, patch: pytest.MonkeyPatch) -> None:
        self._local, self._patch = local, patch

    def __enter__(self) -> None:
        async def unavailable(*_: object, **__: object) -> Any:
            raise errors.StoreUnavailable("the store does not answer", retry_after=1.0)

        for name in ("claim", "save", "load", "list", "delete"):
            self._patch.setattr(self._local.server.store, name, unavailable)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


class TestStoreUnavailable:
    async def test_service_goes_on_without_the_store(
        self, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sessions in memory are stepped, their durable position stands still; what needs the store says so."""
        async with (
            serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=0.05) as local,
            Speaker(local.channel, "counter") as speaker,
        ):
            caller = Caller(local.channel)
            await speaker.open_one("a")
            await speaker.step(0, 0, numbers(1))
            await speaker.flush(0)
            with Outage(local, monkeypatch):
                answer = await speaker.step(0, 1, numbers(2, 3))
                assert (sums(answer), answer.durable) == ([3, 6], 1)
                await speaker.send(
                    open=pb.OpenFrame(
                        model="counter", handles=b"\1\0\0\0", ids=["b"], writer=speaker.writer, incarnation=1
                    )
                )
                failure = await speaker.refused()
                assert (failure.code, failure.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
                await speaker.send(flush=pb.FlushFrame(handles=b"\0" * 4))
                durable = await speaker.expect("durable")
                assert failure_of(durable.errors[0].status).reason == "STORE_UNAVAILABLE"
                ask: dict[str, Any] = {"model": "counter", "session_id": "nowhere"}
                for call in (
                    caller.sessions.GetSession(sessions.GetSessionRequest(**ask)),
                    caller.sessions.ListSessions(sessions.ListSessionsRequest(model="counter")),
                    caller.sessions.DeleteSession(sessions.DeleteSessionRequest(model="counter", session_id="a")),
                    caller.sessions.OpenSession(sessions.OpenSessionRequest(**ask)),
                ):
                    assert (await failing(call)).reason == "STORE_UNAVAILABLE"
            assert await speaker.flush(0) == {0: 3}
            assert (await speaker.open_one("b", 1)).created
            assert sums(await speaker.step(0, 3, numbers(1))) == [7]

    async def test_a_flush_of_a_session_that_sleeps_is_answered(
        self, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It cannot be woken without the store: the frame is refused, and the session sleeps on."""
        async with (
            serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}") as local,
            Speaker(local.channel, "counter") as speaker,
        ):
            await speaker.open_one("a")
            await speaker.step(0, 0, numbers(1))
            await speaker.flush(0)
            await local.server.sessions.hibernate(local.table("counter"), math.inf)
            with Outage(local, monkeypatch):
                await speaker.send(flush=pb.FlushFrame(handles=b"\0" * 4))
                assert (await speaker.refused()).reason == "STORE_UNAVAILABLE"
            assert await speaker.flush(0) == {0: 1}
            assert sums(await speaker.step(0, 1, numbers(2))) == [3]

    async def test_frames_that_wake_one_session_at_once_wake_it_once(
        self, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A flush is answered beside the frames behind it: both find the session asleep."""
        async with (
            serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}") as local,
            Speaker(local.channel, "counter") as speaker,
        ):
            await speaker.open_one("a")
            await speaker.step(0, 0, numbers(1))
            await speaker.flush(0)
            await local.server.sessions.hibernate(local.table("counter"), math.inf)
            load, reached, go_on = local.server.store.load, asyncio.Event(), asyncio.Event()

            async def slowly(keys: Any) -> Any:
                reached.set()
                await go_on.wait()
                return await load(keys)

            monkeypatch.setattr(local.server.store, "load", slowly)
            await speaker.send(flush=pb.FlushFrame(handles=b"\0" * 4))
            await reached.wait()
            (stream,) = local.server.streams._streams.values()
            await speaker.send_chunk([0], [1], [numbers(2)])
            await local.until(lambda: stream._last_frame == 5)
            go_on.set()
            found = [await speaker.read(), await speaker.read()]
            assert sorted(str(each and each.WhichOneof("response")) for each in found) == ["durable", "result"]
            assert not speaker.notices
            assert sums(await speaker.step(0, 2, numbers(3))) == [6]

    async def test_sync_replies_wait_for_the_store(
        self, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In sync mode nothing leaves that is not saved; when the store is back, everything leaves, once, in order."""
        async with (
            serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", durability=Durability.SYNC) as local,
            Speaker(local.channel, "counter") as speaker,
        ):
            await speaker.open_one("a")
            with Outage(local, monkeypatch):
                await speaker.send_chunk([0], [0], [numbers(1, 1)])
                await speaker.send_chunk([0], [2], [numbers(1)])
                table = local.table("counter")
                row = table.rows_of("")["a"]
                await local.until(lambda: local.server.checkpointer.failures and table.position[row] == 3)
                assert speaker._inbox.empty()
            answers = await speaker.answers(2)
            assert joined(answers)["y"][:, 0].tolist() == [1, 2, 3]
            assert [answer.durable for answer in answers] == [3, 3] or answers[0].durable == 2


class _Leaving:
    """A stream that notes when it is told to leave."""

    def __init__(self, told: list[_Leaving]) -> None:
        self.ended = asyncio.Event()
        self._told = told

    def leave(self, grace: float) -> None:
        self._told.append(self)


async def test_streams_are_told_to_leave_one_after_the_other(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of them the server works on, and who has left meanwhile is not told; there is an end to it."""
    told = list[_Leaving]()
    async with serving(models_dir) as local:
        edge = port.Grpc(free_settings(models_dir), local.server, local.running.readiness)
        streams = [_Leaving(told) for _ in range(5)]
        edge._streams.update(cast("list[Stream]", streams))
        with monkeypatch.context() as patched:
            patched.setattr(methods, "_APART", 3600.0)
            telling = asyncio.create_task(edge.send_away(1.0, 36000.0))
            await local.until(lambda: told)
            await asyncio.sleep(0)
            assert len(told) == 1
            telling.cancel()
        gone = next(stream for stream in streams if stream not in told)
        gone.ended.set()
        told.clear()
        await asyncio.wait_for(edge.send_away(1.0, 0.0), DEADLINE)
        assert len(told) == 4
        assert gone not in told
        await edge.stop(None)


async def test_draining(models_dir: Path) -> None:
    """A server that leaves says so, takes no new sessions, and finishes what it has."""
    leaving = serving(models_dir)
    local = await leaving.__aenter__()
    async with connected(local.address) as channel, Speaker(channel, "counter") as speaker:
        await speaker.open_one("a")
        done = asyncio.create_task(leaving.__aexit__(None, None, None))
        await asyncio.wait_for(speaker.go_away.wait(), DEADLINE)
        await speaker.send(
            open=pb.OpenFrame(model="counter", handles=b"\1\0\0\0", ids=["b"], writer=speaker.writer, incarnation=1)
        )
        failure = await speaker.refused()
        assert (failure.code, failure.reason) == ("UNAVAILABLE", "DRAINING")
        assert failure.retry_after
        assert sums(await speaker.step(0, 0, numbers(1, 2))) == [1, 3]
        await speaker.half_close()
        assert await speaker.read() is None
        await asyncio.wait_for(done, DEADLINE)
