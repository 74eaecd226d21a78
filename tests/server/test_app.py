"""One server inside a process: metrics, ports, what a stop saves and how long it takes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, model_pb2, server_pb2, server_pb2_grpc
from statestream_server import app
from statestream_server.settings import StartError
from tests.support.calls import Caller, connected, everything
from tests.support.serving import free_settings, serving
from tests.support.speaker import Speaker

X = {"x": np.ones((3, 2), np.float32)}


async def test_only_a_look_up_that_nobody_waits_for_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A store whose name is not known for a while: each attempt is told once, by who gave it up."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(app._without_lookups)
    for error in (socket.gaierror(-3, "no such name"), OSError("a fault")):
        loop.create_future().set_exception(error)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a fault"]


async def test_metrics_tell_what_was_done(models_dir: Path) -> None:
    """Prometheus text over HTTP: steps and sessions by name."""
    async with serving(models_dir, http_port=0) as local:
        await Caller(local.channel).step("gru", "a", X)
        url = f"http://127.0.0.1:{local.running.http_port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        steps = [float(value) for name, value in values.items() if "steps" in name and "created" not in name]
        assert 3.0 in steps, text
        assert any("session" in name and float(value) == 1 for name, value in values.items()), text


def _get(port: int | None, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_probes_tell_whether_the_server_lives_and_is_ready(models_dir: Path) -> None:
    """Ready until it is told to leave; alive until it is gone; any other path is not there."""
    async with serving(models_dir, http_port=0) as local:
        port = local.running.http_port
        assert await asyncio.to_thread(_get, port, "/healthz") == (200, "alive\n")
        assert await asyncio.to_thread(_get, port, "/readyz") == (200, "ready\n")
        for path in ("/health", "/metrics/x"):
            status, said = await asyncio.to_thread(_get, port, path)
            assert status == 404
            assert "/readyz" in said
            assert "/v2/…" in said
        local.running.readiness.reason = "leaving"
        assert await asyncio.to_thread(_get, port, "/readyz") == (503, "not ready: leaving\n")
        assert await asyncio.to_thread(_get, port, "/healthz") == (200, "alive\n")


async def test_silent_connections_to_the_http_port_cost_no_threads_and_give_way(models_dir: Path) -> None:
    """Hundreds that say nothing, or half a request, and a scrape beside them."""
    async with serving(models_dir, http_port=0) as local:
        port, threads = local.running.http_port, threading.active_count()
        silent = []
        for number in range(400):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            if number % 2:
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: a")
            silent.append((reader, writer))
        status, text = await asyncio.to_thread(_get, port, "/metrics")
        assert (status, "statestream_sessions" in text) == (200, True)
        assert threading.active_count() <= threads + 1, "the caller's own thread"
        # Those that came first were ended for those that came later.
        assert await asyncio.wait_for(silent[0][0].read(), 10) == b""
        assert not silent[-1][0].at_eof()
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("name", ["port", "http_port"])
async def test_a_taken_port_is_told_and_nothing_runs_on(models_dir: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "s.db"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = asyncio.all_tasks()
        with pytest.raises(StartError, match=str(port)):
            async with serving(models_dir, store=f"sqlite:{file}", **{name: port}):
                pass
        assert asyncio.all_tasks() == before
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT count(*) FROM server").fetchone() == (0,), "it told others that it is there"


async def test_a_start_that_fails_leaves_nothing_behind(models_dir: Path, tmp_path: Path) -> None:
    """After a failed start the same store and folder can be served at once."""
    store = f"sqlite:{tmp_path / 's.db'}"
    with pytest.raises(StartError):
        async with serving(tmp_path / "nowhere", store=store):
            pass
    async with serving(models_dir, store=store) as local:
        await Caller(local.channel).step("gru", "a", X)


async def test_limits_and_durability_are_told(models_dir: Path, tmp_path: Path) -> None:
    settings = free_settings(models_dir, store=f"sqlite:{tmp_path / 's.db'}", limits={"max_horizon": 17})
    async with app.running(settings) as running, connected(f"127.0.0.1:{running.port}") as channel:
        info = await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(server_pb2.GetServerInfoRequest())
        assert info.limits.max_horizon == 17
        assert info.durability == pb.DURABILITY_MODE_INTERVAL
        assert (info.store.kind, info.store.survives_process_kill) == ("sqlite", True)
        assert info.device == "cpu"


async def test_a_stop_during_a_forecast_ends_in_time(models_dir: Path) -> None:
    """A forecast of thousands of steps does not hold a stop up."""
    async with asyncio.timeout(15):
        async with serving(models_dir) as local:
            caller = Caller(local.channel)
            await caller.step("loop", "a", X)
            call = caller.inference.Forecast(pb.ForecastRequest(model="loop", session_id="a", horizon=4096))
            assert (await call.read()).offset == 0


async def test_everything_applied_is_saved_at_the_stop(models_dir: Path, tmp_path: Path) -> None:
    """Also what was sent and not answered yet when the stop came."""
    store = f"sqlite:{tmp_path / 's.db'}"
    settings: dict[str, Any] = {"store": store, "checkpoint_interval": 600}
    async with serving(models_dir, **settings) as local, Speaker(local.channel, "gru") as speaker:
        await speaker.open(*(f"s{number}" for number in range(50)))
        await speaker.send_chunk(range(50), [0] * 50, [X] * 50)
        await speaker.half_close()
        assert len(await speaker.answers(50)) == 50
    async with serving(models_dir, store=store) as local, Speaker(local.channel, "gru") as speaker:
        opened = await speaker.open(*(f"s{number}" for number in range(50)), mode=pb.OPEN_MODE_RESUME)
        assert {one.position for one in opened.values()} == {3}  # type: ignore[union-attr]


async def test_an_empty_folder_is_served_where_that_is_meant(tmp_path: Path) -> None:
    """Models may come later."""
    with pytest.raises(StartError, match="it is empty; expected .*; --allow-empty waits for what comes later"):
        async with serving(tmp_path):
            pass
    async with serving(tmp_path, allow_empty=True) as local:
        listed = await Caller(local.channel).models.ListModels(model_pb2.ListModelsRequest())
        assert not listed.models


async def test_a_stream_without_frames_ends_without_a_word(models_dir: Path) -> None:
    async with serving(models_dir) as local:
        call = inference_pb2_grpc.InferenceServiceStub(local.channel).Stream()
        await call.done_writing()
        assert not await everything(call)
