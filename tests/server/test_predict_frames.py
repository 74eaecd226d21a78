"""Predict frames at their limits: windows, large answers, slow readers, guilty neighbours, deaths of the server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statestream
import statestream.aio
from statestream import errors
from statestream.v1 import inference_pb2 as pb
from tests.compliance.test_predict_frames import answered
from tests.support import models
from tests.support.arrays import arrays_of, tensor, u32
from tests.support.calls import Failure
from tests.support.serving import Local, process, serving
from tests.support.speaker import Speaker, fresh_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("models"), "scores", "counter")


@pytest.fixture
async def small(folder: Path) -> AsyncIterator[Local]:
    """A server whose windows and answers are small."""
    async with serving(
        folder, limits={"max_window_bytes": 4096, "max_answer_bytes": 1200, "max_frame_calls": 64}
    ) as local:
        yield local


def calls_of(rows: list[int], value: float = 1.0, model: str = "scores") -> pb.PredictFrame:
    x = np.full((sum(rows), 4), value, np.float32)
    return pb.PredictFrame(model=model, inputs=[tensor("x", x)], rows=u32(*rows))


def idle(local: Local) -> bool:
    return not (local.server.accounts.held or local.server.accounts.active)


async def test_calls_beyond_the_window_are_refused_and_those_before_are_run(small: Local) -> None:
    async with Speaker(small.channel, "counter") as speaker:
        rows = [20] * 10  # 20 × (16 + 12 + 8) bytes each
        await speaker.send(predict=calls_of(rows))
        found = await answered(speaker, rows)
        assert [isinstance(found[place], dict) for place in range(10)] == [True] * 4 + [False] * 6
        refused = found[9]
        assert isinstance(refused, Failure)
        assert refused.reason == "OVERLOADED"
        await small.until(lambda: idle(small))


async def test_an_answer_that_is_too_large_is_refused_for_its_call_alone(small: Local) -> None:
    async with Speaker(small.channel, "counter") as speaker:
        rows = [1, 70, 2]
        await speaker.send(predict=calls_of(rows))
        found = await answered(speaker, rows)
        refused = found[1]
        assert isinstance(refused, Failure)
        assert refused.reason == "ANSWER_TOO_LARGE"
        assert isinstance(found[0], dict)
        assert isinstance(found[2], dict)
        await small.until(lambda: idle(small))


async def test_too_many_calls_in_a_frame_are_refused(small: Local) -> None:
    async with Speaker(small.channel, "counter") as speaker:
        await speaker.send(predict=calls_of([0] * 65))
        refused = await speaker.refused()
        assert (refused.reason, refused.metadata["field"]) == ("BAD_FRAME", "rows")


async def test_a_flood_of_calls_does_not_hold_the_sessions_of_its_stream_up(small: Local) -> None:
    """Calls have a window of their own: a session's chunk is taken, and run in its turn."""
    async with Speaker(small.channel, "counter") as speaker:
        await speaker.open_one(fresh_id())
        with small.engine_held():
            for _ in range(30):
                await speaker.send(predict=calls_of([20] * 5))
            await speaker.send_chunk([0], [0], [{"x": np.ones((1, 1), np.float32)}])
            await small.until(lambda: small.server.engine.queued or small.server.coalescer)
        kinds = []
        while "result" not in kinds:
            response = await speaker.read()
            assert response is not None
            kinds.append(response.WhichOneof("response"))
            assert not response.result.errors


async def test_a_stream_that_is_gone_leaves_nothing_behind(folder: Path) -> None:
    """What waits for it is not run, and counts no more; others of the same batch are answered."""
    async with serving(folder) as local, Speaker(local.channel, "counter") as stays:
        async with Speaker(local.channel, "counter") as gone:
            with local.engine_held():
                for _ in range(5):
                    await gone.send(predict=calls_of([1] * 10))
                await stays.send(predict=calls_of([1, 1]))
                await local.until(lambda: sum(map(len, local.server.engine._calls.by_graph.values())) == 6)
                gone._call.cancel()
                await local.until(lambda: local.server.accounts.active == 1)
        assert len(await answered(stays, [1, 1])) == 2
        await local.until(lambda: idle(local))
        assert local.server.engine.statistics.rows <= 2


async def test_a_model_that_is_unloaded_answers_its_calls(folder: Path) -> None:
    async with serving(folder) as local, Speaker(local.channel, "counter") as speaker:
        with local.engine_held():
            await speaker.send(predict=calls_of([1, 1]))
            await local.until(lambda: any(map(len, local.server.engine._calls.by_graph.values())))
            model = local.server.registry.get("scores").model
            local.server.engine.forget(model.graph, "scores", 1)
        found = await answered(speaker, [1, 1])
        assert [isinstance(one, Failure) and one.reason for one in found.values()] == ["MODEL_NOT_FOUND"] * 2
        await local.until(lambda: idle(local))


async def test_large_answers_come_in_parts_and_calls_beside_them(tmp_path: Path) -> None:
    """Both ends keep to parts of a MiB; a small call passes a large one."""
    models.write(tmp_path, "scores")
    async with serving(tmp_path) as local, statestream.aio.connect(local.address) as client:
        x = np.random.default_rng(0).standard_normal((400_000, 4)).astype(np.float32)
        large, small = await asyncio.gather(client.predict("scores", x), client.predict("scores", x[:3]))
        assert large["scores"].shape == (400_000, 3)
        for name, array in small.items():
            np.testing.assert_allclose(large[name][:3], array, rtol=1e-5)
        large["scores"][0] = 0  # An array of the caller's own.
        assert client._link.core.predictions._windows["scores", 0, ""].held == 0
        await local.until(lambda: idle(local))


async def test_cancelled_between_any_two_awaits_others_are_answered(folder: Path) -> None:
    async with serving(folder) as local, statestream.aio.connect(local.address) as client:
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        expected = (await client.predict("scores", x))["scores"]
        for turns in range(12):
            tasks = [asyncio.create_task(client.predict("scores", x)) for _ in range(20)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            for number, one in enumerate(found):
                if isinstance(one, dict):
                    np.testing.assert_allclose(one["scores"], expected, rtol=1e-5)
                else:
                    assert number % 2 == 0
                    assert isinstance(one, asyncio.CancelledError)
        core = client._link.core
        await local.until(lambda: not (core.predictions.in_flight or core.busy))
        await local.until(lambda: idle(local))


@pytest.mark.slow
def test_every_caller_is_answered_once_and_right_when_the_server_is_killed(folder: Path) -> None:
    """SIGKILL while 1,000 calls wait, and a server again on the same port."""
    with process(folder, "--store", "memory", "--durability", "none") as server:

        async def run() -> None:
            async with statestream.aio.connect(server.address, retry_timeout=60.0) as client:
                x = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
                expected = await client.predict("scores", x)
                answers = list[Any]()

                async def one(number: int) -> None:
                    answers.append((number, await client.predict("scores", x[number : number + 1])))

                tasks = [asyncio.create_task(one(number)) for number in range(1000)]
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                server._process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(server.kill)  # All that it wrote has been read then.
                await asyncio.to_thread(server.start)
                await asyncio.gather(*tasks)
                assert sorted(number for number, _ in answers) == list(range(1000))
                for number, found in answers:
                    np.testing.assert_allclose(found["scores"][0], expected["scores"][number], rtol=1e-4, atol=1e-6)

        asyncio.run(run())


def test_threads_share_frames(folder: Path) -> None:
    """The synchronous client: what its threads ask for at one moment is one frame."""
    with (
        process(folder, "--store", "memory", "--durability", "none") as server,
        statestream.connect(server.address) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
        expected = client.predict("scores", x)["scores"]
        found = list(pool.map(lambda n: client.predict("scores", x[n : n + 1])["scores"], range(64)))
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4, atol=1e-6)
        with pytest.raises(errors.ModelNotFound):
            client.predict("nothing", x)


async def test_a_frame_is_one_run(folder: Path) -> None:
    async with serving(folder) as local, Speaker(local.channel, "counter") as speaker:
        before = local.server.engine.statistics.batches
        await speaker.send(predict=calls_of([1] * 64))
        predicted = await speaker.expect("predicted")
        assert not predicted.calls
        assert len(arrays_of(predicted.outputs)["best"]) == 64
        assert local.server.engine.statistics.batches == before + 1
