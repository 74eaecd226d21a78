"""Every error of the table through a real channel: code, reason, details, and that the server serves on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2
from statestream.v1 import session_pb2 as sessions
from statestream_server.settings import Durability
from tests.server.runtime.graphs import save
from tests.support import models
from tests.support.serving import Local, serving
from tests.support.speaker import (
    DEADLINE,
    Answer,
    Caller,
    Failure,
    Opened,
    Refusal,
    Speaker,
    arrays_of,
    connected,
    everything,
    failing,
    failure_of,
    fresh_id,
    joined,
    same_bits,
    tensor,
)


def numbers(*values: float) -> dict[str, np.ndarray]:
    """Inputs of "counter"."""
    return {"x": np.asarray(values, np.float32)[:, None]}


def words(*values: int) -> dict[str, np.ndarray]:
    """Inputs of "tokens"."""
    return {"token": np.asarray(values, np.int64)}


def sums(answer: Answer) -> list[float]:
    return [float(value) for value in answer.outputs["y"][:, 0]]


@pytest.fixture
async def local(models_dir: Path) -> AsyncIterator[Local]:
    async with serving(models_dir) as local:
        yield local


@pytest.fixture
async def counter(local: Local) -> AsyncIterator[Speaker]:
    async with Speaker(local.channel, "counter") as speaker:
        yield speaker


async def serves_on(channel: Any) -> None:
    """A new session of another model is opened and stepped."""
    async with Speaker(channel, "gru") as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, {"x": np.ones((3, 2), np.float32)})


class TestNonFiniteState:
    async def test_the_session_stays_at_its_last_good_chunk(self, counter: Speaker, local: Local) -> None:
        """A chunk that spoils the state at its third step leaves the session before the chunk, not inside it."""
        await counter.open_one(fresh_id())
        await counter.step(0, 0, numbers(1, 2))
        await counter.send_chunk([0], [2], [numbers(1, 1, np.nan, 1)])
        failure = await counter.refusal()
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "NON_FINITE_STATE")
        assert sums(await counter.step(0, 2, numbers(5))) == [8]
        await serves_on(local.channel)

    async def test_neighbours_in_the_same_batch_are_fine(self, counter: Speaker) -> None:
        await counter.open(*(fresh_id() for _ in range(5)))
        chunks = [numbers(1, 1), numbers(np.inf, 1), numbers(3, 3), numbers(1, np.nan), numbers(5, 5)]
        await counter.send_chunk(range(5), [0] * 5, chunks)
        rows = {row.handle: row for row in await counter.rows(5)}
        assert {handle for handle, row in rows.items() if isinstance(row, Refusal)} == {1, 3}
        fine = {handle: sums(row) for handle, row in rows.items() if isinstance(row, Answer)}
        assert fine == {0: [1, 2], 2: [3, 6], 4: [5, 10]}

    async def test_chunks_queued_behind_a_failed_one_get_a_gap(self, counter: Speaker, local: Local) -> None:
        """They start beyond where the session stays; none of them is applied, each is answered once."""
        await counter.open_one(fresh_id())
        with local.engine_held():
            for start, chunk in ((0, numbers(1, 1)), (2, numbers(np.nan)), (3, numbers(7)), (4, numbers(7, 7))):
                await counter.send_chunk([0], [start], [chunk])
            await local.until(lambda: local.server.engine.queued == 4)
        first, *others = await counter.rows(4)
        assert isinstance(first, Answer)
        assert [(row.position, row.failure.reason) for row in others if isinstance(row, Refusal)] == [
            (2, "NON_FINITE_STATE"),
            (3, "POSITION_GAP"),
            (4, "POSITION_GAP"),
        ]
        assert all(
            row.failure.metadata.get("expected_position", "2") == "2" for row in others if isinstance(row, Refusal)
        )
        assert sums(await counter.step(0, 2, numbers(10))) == [12]

    async def test_recurrent_cells_do_not_hide_it(self, local: Local) -> None:
        """NaN in the input of an LSTM or a GRU is refused like any other."""
        for model, width in (("lstm", 3), ("gru", 2)):
            async with Speaker(local.channel, model) as speaker:
                good = {"x": np.ones((4, width), np.float32)}
                bad = {"x": np.full((4, width), np.nan, np.float32)}
                await speaker.open(fresh_id(), fresh_id())
                await speaker.send_chunk([0, 1], [0, 0], [good, bad])
                rows = {row.handle: row for row in await speaker.rows(2)}
                assert isinstance(rows[0], Answer)
                assert isinstance(rows[1], Refusal)
                assert rows[1].failure.reason == "NON_FINITE_STATE"
                assert same_bits((await speaker.step(1, 0, good)).outputs, rows[0].outputs)

    async def test_a_forecast_from_a_spoilt_history_fails(self, local: Local) -> None:
        history = pb.History(inputs=[tensor("x", np.full((2, 3, 2), np.nan, np.float32))])
        request = pb.ForecastRequest(model="loop", history=history, horizon=3)
        failure = await failing(everything(Caller(local.channel).inference.Forecast(request)))
        assert failure.reason == "NON_FINITE_STATE"
        assert local.table("loop").lane.queued == 0
        await serves_on(local.channel)


class TestModelsThatRefuseInputs:
    async def test_only_the_guilty_row_fails(self, local: Local) -> None:
        """A token beyond the table makes the whole run fail: the others are run again without it."""
        async with Speaker(local.channel, "tokens") as speaker:
            await speaker.open(*(fresh_id() for _ in range(5)))
            chunks = [words(1, 2), words(3, 4), words(0, 99), words(5, 5), words(2, 1)]
            await speaker.send_chunk(range(5), [0] * 5, chunks)
            rows = {row.handle: row for row in await speaker.rows(5)}
            guilty = rows.pop(2)
            assert isinstance(guilty, Refusal)
            assert (guilty.failure.code, guilty.failure.reason) == ("INVALID_ARGUMENT", "BAD_TENSOR")
            assert guilty.failure.fields == ["inputs"]
            whole = models.Whole(local.server.settings.models / "tokens" / "1" / "model.onnx")
            for handle, row in rows.items():
                assert isinstance(row, Answer)
                np.testing.assert_array_equal(row.outputs["y"], whole.run(chunks[handle])["y"])
            again = await speaker.step(2, 0, words(1, 2))
            np.testing.assert_array_equal(again.outputs["y"], whole.run(words(1, 2))["y"])
        await serves_on(local.channel)

    async def test_the_chunk_is_the_unit_even_when_its_last_slice_fails(self, local: Local) -> None:
        """Five steps run as four and one; where the one fails, the four are undone."""
        async with Speaker(local.channel, "tokens") as speaker:
            whole = models.Whole(local.server.settings.models / "tokens" / "1" / "model.onnx")
            await speaker.open_one(fresh_id())
            await speaker.step(0, 0, words(4))
            await speaker.send_chunk([0], [1], [words(1, 1, 1, 1, 77)])
            assert (await speaker.refusal()).reason == "BAD_TENSOR"
            answer = await speaker.step(0, 1, words(2, 3))
            np.testing.assert_array_equal(answer.outputs["y"], whole.run(words(4, 2, 3))["y"][1:])

    async def test_a_failing_prediction_fails_alone(self, local: Local) -> None:
        """Predictions that wait together share a batch; what the graph refuses is the caller's alone."""
        caller = Caller(local.channel)
        good = pb.PredictRequest(model="scores", inputs=[tensor("x", np.ones((2, 4), np.float32))])
        bad = pb.PredictRequest(model="scores", inputs=[tensor("x", np.ones((2, 5), np.float32))])
        results = await asyncio.gather(
            caller.inference.Predict(good), failing(caller.inference.Predict(bad)), caller.inference.Predict(good)
        )
        assert results[1].reason == "BAD_TENSOR"
        assert same_bits(arrays_of(results[0].outputs), arrays_of(results[2].outputs))


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

    async def test_overloaded(self, models_dir: Path) -> None:
        """Chunks beyond the limit of queued bytes are refused, row by row; those before them are applied."""
        async with (
            serving(models_dir, limits={"max_queued_bytes": 1000}) as local,
            Speaker(local.channel, "counter") as speaker,
        ):
            await speaker.open(fresh_id(), fresh_id())
            with local.engine_held():
                await speaker.send_chunk([0], [0], [numbers(*[1] * 200)])
                await speaker.send_chunk([0, 1], [200, 0], [numbers(*[1] * 100)] * 2)
                refused = await speaker.rows(2)
                await speaker.send_chunk([1], [0], [numbers(1)])
                await local.until(lambda: local.server.engine.queued == 2)
            for row in refused:
                assert isinstance(row, Refusal)
                assert (row.failure.code, row.failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
                assert row.failure.retry_after
            assert sorted(answer.end for answer in await speaker.answers(2)) == [1, 200]
            await speaker.step(0, 200, numbers(*[1] * 100))
            assert local.server.engine.queued_bytes == 0

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


class TestModels:
    async def test_model_in_use_until_its_sessions_are_gone(self, local: Local, counter: Speaker) -> None:
        """Unloading needs every session gone; afterwards the model is unknown, until it is loaded again."""
        caller = Caller(local.channel)
        unload, load = model_pb2.UnloadModelRequest(name="counter"), model_pb2.LoadModelRequest(name="counter")
        await counter.open_one(fresh_id())
        failure = await failing(caller.models.UnloadModel(unload))
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "MODEL_IN_USE")
        assert failure.metadata["sessions"] == "1"
        await counter.close(0, delete=True)
        await caller.models.UnloadModel(unload)
        step = pb.StepRequest(model="counter", session_id="x", inputs=[tensor("x", numbers(1)["x"])])
        assert (await failing(caller.inference.Step(step))).reason == "MODEL_NOT_FOUND"
        await serves_on(local.channel)
        assert (await caller.models.LoadModel(load)).model.name == "counter"
        assert (await caller.inference.Step(step)).position == 1

    async def test_a_prediction_model_has_no_sessions(self, local: Local) -> None:
        async with Speaker(local.channel, "scores") as speaker:
            await speaker.send(
                open=pb.OpenFrame(model="scores", handles=b"\0" * 4, ids=["a"], writer=speaker.writer, incarnation=1)
            )
            failure = await speaker.refused()
            assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "UNSUPPORTED")
            assert "predict" in failure.message
        await serves_on(local.channel)

    async def test_a_model_without_feedback_cannot_forecast(self, local: Local) -> None:
        caller = Caller(local.channel)
        await caller.step("lstm", "s", {"x": np.ones((1, 3), np.float32)})
        for request in (
            pb.ForecastRequest(model="lstm", session_id="s", horizon=2),
            pb.ForecastRequest(
                model="lstm", history=pb.History(inputs=[tensor("x", np.ones((1, 2, 3), np.float32))]), horizon=2
            ),
        ):
            failure = await failing(everything(caller.inference.Forecast(request)))
            assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "UNSUPPORTED")
        await serves_on(local.channel)

    async def test_a_version_that_does_not_load_says_why(self, tmp_path: Path) -> None:
        """LoadModel of a broken file is UNSUPPORTED with file and reason; the version before serves on."""
        models.write(tmp_path, "gru", "counter")
        async with serving(tmp_path) as local:
            caller = Caller(local.channel)
            (tmp_path / "gru" / "2").mkdir()
            (tmp_path / "gru" / "2" / "model.onnx").write_bytes(b"no model")
            failure = await failing(caller.models.LoadModel(model_pb2.LoadModelRequest(name="gru")))
            assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "UNSUPPORTED")
            assert str(tmp_path / "gru" / "2" / "model.onnx") in failure.message
            listed = (await caller.models.ListModels(model_pb2.ListModelsRequest())).models
            assert [(m.name, m.version, bool(m.error)) for m in listed] == [
                ("counter", 1, False),
                ("gru", 1, False),
                ("gru", 2, True),
            ]
            await serves_on(local.channel)

    async def test_a_model_without_a_fixed_step_does_not_keep_the_others_from_serving(self, tmp_path: Path) -> None:
        models.write(tmp_path, "gru")
        save(models.ragged(), tmp_path / "ragged" / "1")
        async with serving(tmp_path) as local:
            (reason,) = local.server.registry.failures.values()
            assert str(tmp_path / "ragged" / "1" / "model.onnx") in reason
            assert "'x' has steps of shape [-1]" in reason
            await serves_on(local.channel)

    async def test_a_text_with_an_unknown_symbol(self, local: Local) -> None:
        caller = Caller(local.channel)
        failure = await failing(everything(caller.inference.Generate(pb.GenerateRequest(model="pair", text="aZ"))))
        assert (failure.reason, failure.fields) == ("BAD_TENSOR", ["text"])
        assert await everything(caller.inference.Generate(pb.GenerateRequest(model="pair", text="ab")))


class TestModelChanged:
    async def test_a_session_of_other_weights_is_not_resumed(self, tmp_path: Path) -> None:
        """The file of a version was replaced: its sessions are MODEL_CHANGED, others go on, REPLACE starts anew."""
        folder, store = tmp_path / "models", f"sqlite:{tmp_path / 'sessions.db'}"
        models.write(folder, "gru")
        models.write_version(folder, "lstm", 1, seed=1)
        inputs = {"x": np.ones((2, 3), np.float32)}
        async with serving(folder, store=store) as local, Speaker(local.channel, "lstm") as speaker:
            await speaker.open("a", "b")
            await speaker.send_chunk([0, 1], [0, 0], [inputs, inputs])
            await speaker.answers(2)
        models.write_version(folder, "lstm", 1, seed=1, described="The same weights under another description.")
        async with serving(folder, store=store) as local, Speaker(local.channel, "lstm") as speaker:
            assert (await speaker.open_one("a")).position == 2, "labels do not count"
        models.write_version(folder, "lstm", 1, seed=9)
        async with serving(folder, store=store) as local, Speaker(local.channel, "lstm") as speaker:
            failure = await speaker.not_opened("a")
            assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "MODEL_CHANGED")
            await serves_on(local.channel)
            delete = sessions.DeleteSessionRequest(model="lstm", session_id="b")
            await Caller(local.channel).sessions.DeleteSession(delete)
            assert (await speaker.not_opened("b", mode=pb.OPEN_MODE_RESUME)).reason == "SESSION_NOT_FOUND"
            assert (await speaker.open_one("a", mode=pb.OPEN_MODE_REPLACE)).position == 0
            await speaker.step(0, 0, inputs)

    async def test_a_session_is_pinned_to_its_version(self, tmp_path: Path) -> None:
        """A newer version serves new sessions; old ones keep theirs, in memory and out of the store."""
        folder, store = tmp_path / "models", f"sqlite:{tmp_path / 'sessions.db'}"
        models.write_version(folder, "lstm", 1, seed=1)
        inputs = {"x": np.ones((2, 3), np.float32)}
        async with serving(folder, store=store) as local, Speaker(local.channel, "lstm") as speaker:
            await speaker.open_one("old")
            before = await speaker.step(0, 0, inputs)
            models.write_version(folder, "lstm", 2, seed=2)
            await Caller(local.channel).models.LoadModel(model_pb2.LoadModelRequest(name="lstm"))
            assert (await speaker.open_one("new", 1)).version == 2
            after = await speaker.step(1, 0, inputs)
            assert not same_bits(before.outputs, after.outputs)
            assert (await speaker.open_one("old", 0)).version == 1
            assert (await speaker.not_opened("old", 5, version=2)).reason == "MODEL_CHANGED"
        async with serving(folder, store=store) as local, Speaker(local.channel, "lstm") as speaker:
            assert (await speaker.not_opened("old", 5, version=2)).reason == "MODEL_CHANGED"
            opened = await speaker.open_one("old", 0)
            assert (opened.version, opened.position) == (1, 2)
            assert (await speaker.open_one("new", 1, version=2)).position == 2
            # Both versions in one frame: the inputs are the same, the weights are not.
            await speaker.send_chunk([0, 1], [2, 2], [inputs, inputs])
            assert len(await speaker.answers(2)) == 2

    async def test_snapshots_damaged_and_foreign(self, local: Local) -> None:
        """Damaged: SNAPSHOT_INVALID. Of another model: MODEL_CHANGED. The session stays what it was."""
        caller = Caller(local.channel)
        await caller.step("gru", "a", {"x": np.ones((3, 2), np.float32)})
        ask = sessions.SnapshotSessionRequest(model="gru", session_id="a")
        snapshot = (await caller.sessions.SnapshotSession(ask)).snapshot
        for damaged in (snapshot[:-1], snapshot[:-1] + bytes([snapshot[-1] ^ 1]), snapshot[8:], snapshot * 2):
            request = sessions.RestoreSessionRequest(model="gru", session_id="a", snapshot=damaged)
            failure = await failing(caller.sessions.RestoreSession(request))
            assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "SNAPSHOT_INVALID")
        foreign = sessions.RestoreSessionRequest(model="lstm", session_id="b", snapshot=snapshot)
        failure = await failing(caller.sessions.RestoreSession(foreign))
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "MODEL_CHANGED")
        get = sessions.GetSessionRequest(model="gru", session_id="a")
        assert (await caller.sessions.GetSession(get)).session.position == 3
        await serves_on(local.channel)

    async def test_a_damaged_record_is_state_lost(self, models_dir: Path, tmp_path: Path) -> None:
        """A record whose bytes rotted is never resumed as something else."""
        file = tmp_path / "sessions.db"
        async with serving(models_dir, store=f"sqlite:{file}") as local, Speaker(local.channel, "gru") as speaker:
            await speaker.open_one("a")
            await speaker.step(0, 0, {"x": np.ones((3, 2), np.float32)})
        with sqlite3.connect(file) as database:
            (table,) = [
                name
                for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
                if "blob" in {row[1] for row in database.execute(f"PRAGMA table_info({name})").fetchall()}
            ]
            (blob,) = database.execute(f"SELECT blob FROM {table}").fetchone()
            database.execute(f"UPDATE {table} SET blob = ?", (blob[:-3] + b"???",))
        database.close()
        async with serving(models_dir, store=f"sqlite:{file}") as local, Speaker(local.channel, "gru") as speaker:
            failure = await speaker.not_opened("a")
            assert (failure.code, failure.reason) == ("DATA_LOSS", "STATE_LOST")
            await serves_on(local.channel)


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
                row = table.row_of["a"]
                await local.until(lambda: local.server.saver.failures and table.position[row] == 3)
                assert speaker._inbox.empty()
            answers = await speaker.answers(2)
            assert joined(answers)["y"][:, 0].tolist() == [1, 2, 3]
            assert [answer.durable for answer in answers] == [3, 3] or answers[0].durable == 2


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


async def test_one_stream_with_tables_of_different_sizes(local: Local) -> None:
    """A stream may open sessions of several models; a row of the larger table is none of the smaller one's."""
    async with Speaker(local.channel, "gru") as speaker:
        await speaker.open_one("g", 0)
        await speaker.open(*(f"c{i}" for i in range(1500)), handles=range(1, 1501), model="counter")
        handles = [1500, 1, 1200]
        await speaker.send_chunk(handles, [0] * 3, [numbers(1)] * 3)
        assert sorted(answer.handle for answer in await speaker.answers(3)) == sorted(handles)
        await speaker.step(0, 0, {"x": np.ones((2, 2), np.float32)})
        await speaker.close(*range(1501))


async def test_a_frame_for_two_models_is_refused_as_a_whole(local: Local) -> None:
    """The inputs fit the sessions of one model only: nothing is applied, not even where they fit."""
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open_one("c", 0)
        await speaker.open_one("g", 1, model="gru")
        await speaker.send_chunk([0, 7, 1], [0, 0, 0], [numbers(1)] * 3)
        assert (await speaker.refused()).reason == "BAD_TENSOR"
        assert sums(await speaker.step(0, 0, numbers(5))) == [5]


async def test_a_frame_that_waited_is_checked_against_the_claims_of_now(local: Local) -> None:
    """It repeated a queued chunk and had to wait; a session that was taken meanwhile is not stepped by it."""
    async with Speaker(local.channel, "counter") as speaker, Speaker(local.channel, "counter") as other:
        await speaker.open("a", "b")
        with local.engine_held():
            await speaker.send_chunk([0], [0], [numbers(1)])
            await local.until(lambda: local.server.engine.queued == 1)
            await speaker.send_chunk([0, 1], [0, 0], [numbers(1), numbers(100)])
            assert (await other.open_one("b")).position == 0
        rows = await speaker.rows(3)
        assert [sums(row) for row in rows if isinstance(row, Answer)] == [[1], [1]]
        assert [row.handle for row in rows if isinstance(row, Refusal)] == [1]
        assert sums(await other.step(0, 0, numbers(5))) == [5]


def test_every_reason_has_one_class_and_one_code() -> None:
    """The table of errors: reasons are unique, and each travels as a status and back."""
    for reason, kind in errors.REASONS.items():
        failure: Failure = failure_of(errors.to_status(kind("what came", metadata={"field": "f"}, retry_after=0.5)))
        assert (failure.reason, failure.code, failure.retry_after) == (reason, kind.code.name, 0.5)
        back = errors.from_status(errors.to_status(kind("what came", metadata={"position": "3"})))
        assert type(back) is kind
        assert back.metadata == {"position": "3"}
