"""Models that are missing, in use or broken, and records and snapshots of other weights: what callers hear."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2
from statestream.v1 import session_pb2 as sessions
from statestream_server.drivers.asking import Request
from statestream_server.drivers.bands import Past
from statestream_server.drivers.generate import Request as Text
from tests.server.models.graphs import save
from tests.support import models
from tests.support.arrays import same_bits, tensor
from tests.support.calls import DEADLINE, Caller, everything, failing
from tests.support.counter import numbers
from tests.support.serving import Local, serves_on, serving
from tests.support.speaker import Speaker, fresh_id


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

    async def test_what_calls_share_is_told(self, local: Local) -> None:
        """Of a model without memory, and of an encoder beside its decoder."""
        caller = Caller(local.channel)
        proved = (model_pb2.BATCH_INVARIANCE_EXACT, model_pb2.BATCH_INVARIANCE_PADDED)
        scores = (await caller.models.GetModel(model_pb2.GetModelRequest(name="scores"))).model
        assert scores.batch_invariance in proved
        assert scores.encoder_batch_invariance == model_pb2.BATCH_INVARIANCE_UNSPECIFIED
        pair = (await caller.models.GetModel(model_pb2.GetModelRequest(name="pair"))).model
        assert pair.batch_invariance in proved
        assert pair.encoder_batch_invariance in proved

    async def test_what_outlives_its_model_is_told(self, local: Local) -> None:
        """A forecast between two steps, a text between two tokens, a prediction that waits: none hangs."""
        caller, server = Caller(local.channel), local.server
        past = Past([np.ones((2, 2), np.float32)], np.asarray([2]))
        forecast = server.forecaster.from_history(local.table("loop"), past, Request(9))
        await anext(forecast)
        pair = server.registry.get("pair")
        text = server.generator.generate(pair.model, pair.table, Text(["ab"], stream=True))
        await anext(text)
        with local.engine_held():
            predict = pb.PredictRequest(model="scores", inputs=[tensor("x", np.ones((2, 4), np.float32))])
            waiting = asyncio.create_task(failing(caller.inference.Predict(predict)))
            await local.until(lambda: any(map(len, server.engine._calls.by_graph.values())))
            for name in ("loop", "pair", "scores"):
                await caller.models.UnloadModel(model_pb2.UnloadModelRequest(name=name))
        assert (await asyncio.wait_for(waiting, DEADLINE)).reason == "MODEL_NOT_FOUND"
        for going in (forecast, text):
            with pytest.raises(errors.ModelNotFound, match="unloaded while the call ran"):
                await asyncio.wait_for(anext(going), DEADLINE)
        await serves_on(local.channel)

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
        failure = await failing(everything(caller.inference.Generate(pb.GenerateRequest(model="pair", texts=["aZ"]))))
        assert (failure.reason, failure.fields) == ("BAD_TENSOR", ["texts"])
        assert await everything(caller.inference.Generate(pb.GenerateRequest(model="pair", texts=["ab"])))


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
