"""Sessions between memory and store: hibernation, take-over by another server, callers that go away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc
from statestream.v1 import session_pb2 as sessions
from statestream_server import housekeeping
from statestream_server.settings import Durability
from tests.support.arrays import arrays_of, same_bits, tensor, u32, u64
from tests.support.calls import DEADLINE, Caller, everything, failing
from tests.support.counter import numbers, sums
from tests.support.serving import Local, serving
from tests.support.speaker import Refusal, Speaker, fresh_id, rows_of


@pytest.fixture
async def local(models_dir: Path, tmp_path: Path) -> AsyncIterator[Local]:
    """A server with a store, whose replies leave when they are saved, and room for four sessions of a model."""
    async with serving(
        models_dir, store=f"sqlite:{tmp_path / 's.db'}", durability=Durability.SYNC, limits={"max_sessions": 4}
    ) as local:
        yield local


@pytest.fixture
async def speaker(local: Local) -> AsyncIterator[Speaker]:
    async with Speaker(local.channel, "counter") as speaker:
        yield speaker


async def residence(local: Local, name: str, model: str = "counter") -> sessions.Session:
    request = sessions.GetSessionRequest(model=model, session_id=name)
    session: sessions.Session = (await Caller(local.channel).sessions.GetSession(request)).session
    return session


class TestHibernation:
    async def test_the_longest_unused_session_makes_room_and_comes_back(self, local: Local, speaker: Speaker) -> None:
        """Its stream keeps the handle: the next chunk wakes it where it stood, under the same claim."""
        for handle in range(5):
            await speaker.open_one(f"s{handle}", handle)
            await speaker.step(handle, 0, numbers(handle, 1))
        first = await residence(local, "s0")
        assert (first.residence, first.position) == (sessions.RESIDENCE_STORED, 2)
        assert sums(await speaker.step(0, 2, numbers(10))) == [11]
        again = await residence(local, "s0")
        assert (again.residence, again.epoch) == (sessions.RESIDENCE_RESIDENT, first.epoch)
        assert local.table("counter").sessions <= 4
        assert not speaker.notices

    async def test_any_order_of_steps_over_few_rows(self, local: Local, speaker: Speaker) -> None:
        """Twelve sessions in four rows: whichever are stepped next, each counts for itself."""
        turns, position, total = random.Random(7), [0] * 12, [0.0] * 12
        for handle in range(12):
            await speaker.open_one(f"s{handle}", handle)
        for _ in range(60):
            chosen = turns.sample(range(12), turns.randint(1, 4))
            chunks = [numbers(*(turns.randint(1, 9) for _ in range(turns.randint(1, 5)))) for _ in chosen]
            await speaker.send_chunk(chosen, [position[handle] for handle in chosen], chunks)
            answers = {answer.handle: answer for answer in await speaker.answers(len(chosen))}
            for handle, chunk in zip(chosen, chunks, strict=True):
                expected = (total[handle] + np.cumsum(chunk["x"])).tolist()
                assert sums(answers[handle]) == expected
                position[handle], total[handle] = answers[handle].end, expected[-1]
        assert local.table("counter").sessions <= 4

    async def test_opening_one_that_is_here_beside_a_new_one(self, local: Local, speaker: Speaker) -> None:
        """The session that is opened again is not the one that makes room for its companion."""
        for handle in range(4):
            await speaker.open_one(f"s{handle}", handle)
            await speaker.step(handle, 0, numbers(handle + 1))
        opened = await speaker.open("s0", "new", handles=[0, 9])
        assert [getattr(opened[handle], "position", opened[handle]) for handle in (0, 9)] == [1, 0]
        await speaker.send_chunk([0, 9], [1, 0], [numbers(1), numbers(100)])
        assert {answer.handle: sums(answer) for answer in await speaker.answers(2)} == {0: [2], 9: [100]}
        for handle in (1, 2, 3):
            assert sums(await speaker.step(handle, 1, numbers(1))) == [handle + 2]

    async def test_kept_replies_sleep_too(self, local: Local, speaker: Speaker) -> None:
        """A chunk repeated after its session slept is answered by the reply of the first."""
        await speaker.open_one("s0", 0)
        once = await speaker.step(0, 0, numbers(1, 2, 3))
        await housekeeping.tidy(local.server, 1e12, refresh=False)
        assert local.table("counter").sessions == 0
        assert same_bits((await speaker.step(0, 0, numbers(1, 2, 3))).outputs, once.outputs)
        await housekeeping.tidy(local.server, 1e12, refresh=False)
        await speaker.send_chunk([0], [0], [numbers(1, 2, 4)])
        assert (await speaker.refusal()).reason == "POSITION_CONFLICT"

    async def test_everything_works_on_a_sleeping_session(self, local: Local) -> None:
        """Forecast, fork, snapshot, flush, close and delete bring it back or read it where it is."""
        caller = Caller(local.channel)
        ask: dict[str, Any] = {"model": "loop", "session_id": "a"}
        inputs = {"x": np.ones((5, 2), np.float32)}

        async def sleep() -> None:
            await housekeeping.tidy(local.server, 1e12, refresh=False)
            assert (await residence(local, "a", "loop")).residence == sessions.RESIDENCE_STORED

        async with Speaker(local.channel, "loop") as speaker:
            await speaker.open_one("a")
            last = await speaker.step(0, 0, inputs)
            await sleep()
            forecast = await everything(caller.inference.Forecast(pb.ForecastRequest(**ask, horizon=2)))
            np.testing.assert_array_equal(arrays_of(forecast[0].outputs)["y"][0, 0], last.outputs["y"][-1])
            await sleep()
            fork = await caller.sessions.ForkSession(sessions.ForkSessionRequest(**ask, fork_id="b"))
            assert fork.session.position == 5
            await sleep()
            assert (await caller.sessions.SnapshotSession(sessions.SnapshotSessionRequest(**ask))).position == 5
            flushed = await caller.sessions.FlushSession(sessions.FlushSessionRequest(**ask))
            assert flushed.durable_position == 5
            opened = await speaker.open_one("a")
            assert opened.position == 5
            await sleep()
            assert await speaker.flush(0) == {0: 5}
            await sleep()
            await speaker.send_ack(0, 5)
            assert (await speaker.step(0, 5, inputs)).end == 10
            await sleep()
            await speaker.close(0, delete=True)
            request = sessions.GetSessionRequest(**ask)
            assert (await failing(caller.sessions.GetSession(request))).reason == "SESSION_NOT_FOUND"

    async def test_a_session_taken_while_it_slept_is_not_woken(self, local: Local, speaker: Speaker) -> None:
        """Another writer opened it meanwhile: the first stream's handle stands for nothing any more."""
        await speaker.open_one("s0", 0)
        await speaker.step(0, 0, numbers(1))
        await housekeeping.tidy(local.server, 1e12, refresh=False)
        async with Speaker(local.channel, "counter") as other:
            assert (await other.open_one("s0")).position == 1
            await speaker.send_chunk([0], [1], [numbers(5)])
            assert (await speaker.refusal()).reason in ("SESSION_NOT_FOUND", "SESSION_MOVED")
            assert sums(await other.step(0, 1, numbers(1))) == [2]

    async def test_what_is_not_saved_does_not_leave(self, models_dir: Path, tmp_path: Path) -> None:
        """With the store behind, a full table is TOO_MANY_SESSIONS; nobody is forgotten."""
        async with (
            serving(
                models_dir, store=f"sqlite:{tmp_path / 't.db'}", checkpoint_interval=600, limits={"max_sessions": 2}
            ) as local,
            Speaker(local.channel, "counter") as speaker,
        ):
            for handle in range(2):
                await speaker.open_one(f"s{handle}", handle)
                await speaker.step(handle, 0, numbers(1))
            await speaker.send(
                open=pb.OpenFrame(model="counter", handles=u32(2), ids=["s2"], writer=speaker.writer, incarnation=1)
            )
            assert (await speaker.refused()).reason == "TOO_MANY_SESSIONS"
            assert sums(await speaker.step(0, 1, numbers(1))) == [2]
            await speaker.flush(1)
            assert (await speaker.open_one("s2", 2)).created
            assert (await residence(local, "s0")).residence == sessions.RESIDENCE_RESIDENT or await speaker.flush(0)

    async def test_orphans_that_end_with_their_caller_are_deleted(self, local: Local) -> None:
        """An ephemeral session goes some time after its stream; others stay."""
        async with Speaker(local.channel, "counter") as speaker:
            await speaker.open_one("gone", 0, ephemeral=True)
            await speaker.open_one("kept", 1)
        await local.until(lambda: len(local.server.streams) == 0)
        await housekeeping.tidy(local.server, 1e12, refresh=False)
        request = sessions.ListSessionsRequest(model="counter")
        listed = (await Caller(local.channel).sessions.ListSessions(request)).sessions
        assert [session.id for session in listed] == ["kept"]


class TestTakeOver:
    async def test_another_server_takes_a_session_over(self, models_dir: Path, tmp_path: Path) -> None:
        """Two servers on one store: the newer claim owns the session; the older server's next save is fenced."""
        store = f"sqlite:{tmp_path / 's.db'}"
        async with (
            serving(models_dir, store=store, checkpoint_interval=600) as one,
            serving(models_dir, store=store, checkpoint_interval=600) as two,
            Speaker(one.channel, "counter") as first,
            Speaker(two.channel, "counter") as second,
        ):
            opened = await first.open_one("a")
            await first.step(0, 0, numbers(1, 2))
            await first.flush(0)
            await first.step(0, 2, numbers(100))
            taken = await second.open_one("a", seen_epochs=u64(opened.epoch), replay_positions=u64(2))
            assert taken.position == 2, "what the first server had not saved is the caller's to send again"
            assert taken.epoch > opened.epoch
            assert sums(await second.step(0, 2, numbers(10))) == [13]
            assert await second.flush(0) == {0: 3}
            await first.send(flush=pb.FlushFrame(handles=u32(0)))
            await first.unasked(lambda: first.notices)
            assert first.notices[0].failure.reason == "SESSION_MOVED"
            await first.send_chunk([0], [3], [numbers(1000)])
            assert await _reasons(first, 1) == ["SESSION_NOT_FOUND"]
            back = await first.open_one("a", 1)
            assert (back.position, back.epoch > taken.epoch) == (3, True)
            assert sums(await first.step(1, 3, numbers(1))) == [14]

    async def test_only_an_open_takes_a_session_from_another_server(self, models_dir: Path, tmp_path: Path) -> None:
        """Fork, snapshot, flush, forecast, delete elsewhere are NOT_OWNER and name the owner; the session goes on."""
        store = f"sqlite:{tmp_path / 's.db'}"
        async with (
            serving(models_dir, store=store, checkpoint_interval=5, advertise="one:8001") as one,
            serving(models_dir, store=store, checkpoint_interval=5, advertise="two:8001") as two,
            Speaker(one.channel, "loop") as first,
        ):
            await first.open_one("a")
            await first.step(0, 0, {"x": np.ones((3, 2), np.float32)})
            await first.flush(0)
            caller = Caller(two.channel)
            ask: dict[str, Any] = {"model": "loop", "session_id": "a"}
            for call in (
                caller.sessions.ForkSession(sessions.ForkSessionRequest(**ask, fork_id="b")),
                caller.sessions.SnapshotSession(sessions.SnapshotSessionRequest(**ask)),
                caller.sessions.FlushSession(sessions.FlushSessionRequest(**ask)),
                everything(caller.inference.Forecast(pb.ForecastRequest(**ask, horizon=2))),
                caller.sessions.DeleteSession(sessions.DeleteSessionRequest(**ask)),
            ):
                failure = await failing(call)
                assert (failure.code, failure.reason) == ("ABORTED", "NOT_OWNER")
                assert failure.metadata["owner"] == "one:8001"
            assert (await first.step(0, 3, {"x": np.ones((1, 2), np.float32)})).end == 4
            assert not first.notices
            assert (await caller.step("loop", "a", {"x": np.ones((1, 2), np.float32)})).position == 4

    async def test_a_caller_that_cannot_replay_that_far_hears_it(self, models_dir: Path, tmp_path: Path) -> None:
        """The other server has only what was saved: STATE_LOST for who needs more, and nothing is taken."""
        store = f"sqlite:{tmp_path / 's.db'}"
        async with (
            serving(models_dir, store=store, checkpoint_interval=600) as one,
            serving(models_dir, store=store, checkpoint_interval=600) as two,
            Speaker(one.channel, "counter") as first,
            Speaker(two.channel, "counter") as second,
        ):
            await first.open_one("a")
            await first.step(0, 0, numbers(1, 2))
            lost = await second.not_opened("a", replay_positions=u64(2))
            assert (lost.reason, lost.metadata["position"]) == ("STATE_LOST", "0")
            assert sums(await first.step(0, 2, numbers(1))) == [4]
            assert await first.flush(0) == {0: 3}


async def _reasons(speaker: Speaker, count: int) -> list[str]:
    """The reasons of so many refused chunks; answers to flushes before them are passed over."""
    found = list[str]()
    while len(found) < count:
        response = await speaker.read()
        assert response is not None
        if response.WhichOneof("response") == "result":
            found += [row.failure.reason for row in rows_of(0, response.result) if isinstance(row, Refusal)]
    return found


class TestCallersThatGoAway:
    async def test_a_forecast_that_nobody_reads_frees_its_rows(self, local: Local) -> None:
        """A cancelled forecast ends; its scratch rows are free again and the session has not moved."""
        caller, table = Caller(local.channel), local.table("loop")
        await caller.step("loop", "a", {"x": np.ones((3, 2), np.float32)})
        free = len(table._free)
        for _ in range(3):
            call = caller.inference.Forecast(pb.ForecastRequest(model="loop", session_id="a", horizon=4000))
            await call.read()
            call.cancel()
        await local.until(lambda: len(table._free) == free and not table.lane.queued)
        assert (await residence(local, "a", "loop")).position == 3

    async def test_a_text_that_nobody_reads_frees_its_row(self, local: Local) -> None:
        caller, table = Caller(local.channel), local.table("pair")
        await everything(caller.inference.Generate(pb.GenerateRequest(model="pair", texts=["abc"])))
        free = len(table._free)
        call = caller.inference.Generate(pb.GenerateRequest(model="pair", texts=["abcdefgh"], stream=True))
        await call.read()
        call.cancel()
        await local.until(lambda: len(table._free) == free and not table.lane.queued)

    async def test_a_stream_that_breaks_leaves_whole_chunks(self, local: Local) -> None:
        """What was framed may still be applied, each chunk whole; the next writer finds the position and goes on."""
        async with Speaker(local.channel, "counter") as speaker:
            await speaker.open_one("a")
            for start in range(0, 200, 10):
                await speaker.send_chunk([0], [start], [numbers(*[1] * 10)])
        async with Speaker(local.channel, "counter") as speaker:
            position = (await speaker.open_one("a")).position
            assert position % 10 == 0
            assert sums(await speaker.step(0, position, numbers(1))) == [position + 1]

    async def test_a_step_whose_caller_went_away_blocks_nobody(self, local: Local) -> None:
        caller = Caller(local.channel)
        request = pb.StepRequest(model="counter", session_id="a", inputs=[tensor("x", numbers(1)["x"])])
        with local.engine_held():
            call = caller.inference.Step(request)
            await local.until(lambda: local.server.engine.queued == 1)
            call.cancel()
        await local.until(lambda: not local.server.engine.queued)
        assert (await caller.step("counter", "a", numbers(1))).position == 2

    async def test_a_prediction_whose_caller_went_away_is_not_run(self, local: Local) -> None:
        caller = Caller(local.channel)
        request = pb.PredictRequest(model="scores", inputs=[tensor("x", np.ones((1, 4), np.float32))])
        batches = local.server.engine.statistics.batches
        with local.engine_held():
            calls = [caller.inference.Predict(request) for _ in range(3)]
            queues = local.server.engine._calls.by_graph
            await local.until(lambda: sum(len(queue._calls) for queue in queues.values()) == 3)
            calls[0].cancel()
            await local.until(lambda: any(not c.sink.wanted for q in queues.values() for c in q._calls))
        assert len((await calls[1]).outputs) == len((await calls[2]).outputs) == 2
        statistics = local.server.engine.statistics
        assert statistics.batches == batches + 1
        assert statistics.rows >= 2

    async def test_a_unary_caller_that_is_overtaken_is_told(
        self, local: Local, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its reply waited for the store when another writer took the session: the call ends with SESSION_MOVED."""
        caller, store = Caller(local.channel), local.server.store
        await caller.step("counter", "a", numbers(1))
        go_on, save = asyncio.Event(), store.save

        async def slow(records: Any) -> Any:
            await go_on.wait()
            return await save(records)

        monkeypatch.setattr(store, "save", slow)
        request = pb.StepRequest(model="counter", session_id="a", inputs=[tensor("x", numbers(5)["x"])])
        table, call = local.table("counter"), caller.inference.Step(request, timeout=DEADLINE)
        await local.until(lambda: int(table.position[table.rows_of("")["a"]]) == 2)
        opening = asyncio.create_task(speaker.open_one("a"))
        await local.until(lambda: int(table.owner[table.rows_of("")["a"]]) != 0)
        go_on.set()
        assert (await failing(call)).reason == "SESSION_MOVED"
        assert (await opening).position == 2
        assert sums(await speaker.step(0, 2, numbers(1))) == [7]

    async def test_a_slow_reader_holds_only_itself_back(self, models_dir: Path) -> None:
        """A stream that is not read is not read from either; what waits for it stays bounded, others go on."""
        rows, steps, queued = 100, 256, 8
        limits = {"max_unacknowledged_chunks": 10_000, "max_queued_bytes": queued * rows * steps * 8}
        async with serving(models_dir, limits=limits) as local:
            slow = inference_pb2_grpc.InferenceServiceStub(local.channel).Stream()
            ids = [fresh_id() for _ in range(rows)]
            handles = u32(*range(rows))
            await slow.write(
                pb.StreamRequest(
                    frame=1,
                    open=pb.OpenFrame(model="tokens", handles=handles, ids=ids, writer=bytes(16), incarnation=1),
                )
            )
            inputs = [tensor("token", np.zeros(rows * steps, np.int64))]

            async def flood() -> None:
                for number in range(1000):
                    chunk = pb.ChunkFrame(
                        handles=handles, positions=u64(*[number * steps] * rows), steps=steps, inputs=inputs
                    )
                    await slow.write(pb.StreamRequest(frame=number + 2, chunk=chunk))

            flooding = asyncio.create_task(flood())
            await local.until(lambda: len(local.server.streams) == 1)
            (peer,) = local.server.streams._streams.values()
            await local.until(lambda: peer._account.is_over)
            await local.until(lambda: not local.server.engine.queued)
            async with Speaker(local.channel, "counter") as speaker:
                await speaker.open_one("a")
                for position in range(50):
                    await speaker.step(0, position, numbers(1))
            assert not flooding.done()
            # What was queued before the stream fell behind is still answered.
            assert peer._outbox.nbytes < (8 << 20) + (queued + 1) * rows * steps * 3 * 4
            flooding.cancel()
            slow.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
