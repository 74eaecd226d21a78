"""`statestream serve --workers`: who watches whom, who leaves when, and what holds for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2, server_pb2, server_pb2_grpc, session_pb2
from tests.server.stores.redis_server import wait_until
from tests.support import models
from tests.support.calls import Caller, connected, failing
from tests.support.serving import TEST_EDGE, Process, lasting_port, process
from tests.support.speaker import Speaker

ONE = {"x": np.ones((2, 1), np.float32)}
READY = r"ready: gRPC"


@pytest.fixture(params=[TEST_EDGE or "grpcio", pytest.param("h2", marks=pytest.mark.slow)])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    """Two workers that are ready; nothing is saved before the end: the interval is longer than the test."""
    folder = models.write(tmp_path / "models", "counter")
    options = ("--store", f"sqlite:{tmp_path / 'sessions.db'}", "--workers", "2", "--checkpoint-interval", "600")
    with process(folder, *options, edge=request.param) as server:
        server.wait_for(f"(?s){READY}.*{READY}")
        yield server


def workers(server: Process) -> list[int]:
    """The processes that serve. Python starts one more, which looks after resources and ends with its parent."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def stepped(server: Process, *, resumed: bool) -> None:
    """Makes a session's first two steps, or finds them made."""
    async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
        mode = pb.OPEN_MODE_RESUME if resumed else pb.OPEN_MODE_CREATE
        opened = await speaker.open_one("a", mode=mode)
        assert opened.position == (2 if resumed else 0)
        await speaker.step(0, opened.position, ONE)


@pytest.mark.slow
async def test_a_signal_to_every_process_of_the_group_drains(pool: Process) -> None:
    """A terminal and a service manager do that: a worker hears of it from them and from its parent."""
    await stepped(pool, resumed=False)
    for pid in (*workers(pool), pool.pid):
        os.kill(pid, signal.SIGTERM)
    assert pool.wait() == 0
    pool.start()
    await stepped(pool, resumed=True)


async def test_workers_leave_when_their_parent_is_killed(pool: Process) -> None:
    """And save: nobody is left to tell them later."""
    await stepped(pool, resumed=False)
    pool.kill()  # Waits until nobody has its output open any more.
    assert len(re.findall("leaving: ", pool.output)) == 2
    pool.start()
    await stepped(pool, resumed=True)


async def test_a_worker_that_is_killed_is_started_again(pool: Process) -> None:
    one, other = workers(pool)
    os.kill(one, signal.SIGKILL)
    pool.wait_for(f"(?s)status -9.*{READY}")
    assert other in workers(pool)
    assert one not in workers(pool)
    assert pool.stop() == 0


MODEL = "counter"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A models folder with version 1 of one model."""
    return models.write(tmp_path / "models", MODEL)


@pytest.fixture
def three(folder: Path, tmp_path: Path) -> Iterator[Process]:
    """Three workers that are ready, with one HTTP port."""
    config = tmp_path / "config.toml"
    config.write_text("hibernate-after = 1000\n")
    options = ("--store", f"sqlite:{tmp_path / 'sessions.db'}", "--workers", "3", "--no-watch", "--config", str(config))
    with process(folder, *options, "--http", "--http-port", str(lasting_port())) as server:
        server.wait_for(f"(?s){READY}.*{READY}.*{READY}")
        yield server


def add(folder: Path, version: int, *, broken: bool = False) -> None:
    """Puts another version into the folder: whole, or one that no server can load."""
    shutil.copytree(folder / MODEL / "1", folder / f"{MODEL}.new")
    if broken:
        (folder / f"{MODEL}.new" / "model.onnx").write_bytes(b"broken")
    (folder / f"{MODEL}.new").rename(folder / MODEL / str(version))


@contextlib.asynccontextmanager
async def each(server: Process, count: int = 3) -> AsyncIterator[list[Caller]]:
    """A connection to every worker: the kernel spreads them, so there are as many as it takes to meet all."""
    found = dict[str, Any]()
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(30):
        while len(found) < count:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(server.address, options=options)
            stack.push_async_callback(channel.close)
            try:
                stub = server_pb2_grpc.ServerServiceStub(channel)
                info = await stub.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=5)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)  # It came upon one that ended just now.
                continue
            found.setdefault(info.server_id, Caller(channel))
        yield list(found.values())


async def served(caller: Caller) -> list[tuple[int, bool]]:
    """The versions that a worker serves, and which one serves by default."""
    found = await caller.models.ListModels(model_pb2.ListModelsRequest())
    return [(model.version, model.is_default) for model in found.models if not model.error]


async def load(caller: Caller, version: int) -> model_pb2.Model:
    """Has a worker load a version."""
    answer = await caller.models.LoadModel(model_pb2.LoadModelRequest(name=MODEL, version=version), timeout=20)
    return answer.model


def is_back(server: Process, killed: int) -> bool:
    """Whether as many workers were started again as were killed."""
    return server.output.count(READY) == 3 + killed


def http(server: Process, path: str) -> tuple[int, str]:
    port = server.options[server.options.index("--http-port") + 1]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_a_load_and_an_unload_reach_every_worker_and_those_that_start_later(three: Process, folder: Path) -> None:
    """Also when something newer lies in the folder by then: who starts later serves what the others serve."""
    add(folder, 2)
    async with each(three) as callers:
        loaded = await callers[0].models.LoadModel(model_pb2.LoadModelRequest(name=MODEL))
        assert (loaded.model.version, loaded.model.is_default) == (2, True)
        assert [await served(one) for one in callers] == [[(1, False), (2, True)]] * 3
        await callers[1].models.UnloadModel(model_pb2.UnloadModelRequest(name=MODEL, version=1))
        assert [await served(one) for one in callers] == [[(2, True)]] * 3
    add(folder, 3)
    os.kill(workers(three)[1], signal.SIGKILL)
    three.wait_for("(?s)status -9.*ready: gRPC")
    async with each(three) as callers:
        assert [await served(one) for one in callers] == [[(2, True)]] * 3


async def test_a_load_that_fails_changes_nothing_in_any_worker(three: Process, folder: Path) -> None:
    add(folder, 2, broken=True)
    async with each(three) as callers:
        failure = await failing(callers[0].models.LoadModel(model_pb2.LoadModelRequest(name=MODEL, version=2)))
        assert failure.reason == "UNSUPPORTED"
        assert "none serves it" in failure.message
        assert failure.metadata["workers"] == "0, 1, 2"
        failure = await failing(callers[0].models.LoadModel(model_pb2.LoadModelRequest(name=MODEL, version=9)))
        assert failure.reason == "MODEL_NOT_FOUND"
        assert [await served(one) for one in callers] == [[(1, True)]] * 3


@pytest.mark.slow
async def test_what_one_worker_uses_stays_in_all(three: Process, folder: Path) -> None:
    """An unload that one worker refuses is done in none; the answer says where, and how many sessions there are."""
    add(folder, 2)
    async with each(three) as callers:
        await callers[0].models.LoadModel(model_pb2.LoadModelRequest(name=MODEL))
        await callers[1].step(MODEL, "a", ONE)
        failure = await failing(callers[0].models.UnloadModel(model_pb2.UnloadModelRequest(name=MODEL)))
        assert failure.reason == "MODEL_IN_USE"
        assert failure.metadata["sessions"] == "1"
        assert "all go on serving it" in failure.message
        assert [await served(one) for one in callers] == [[(1, False), (2, True)]] * 3
        failure = await failing(callers[0].models.UnloadModel(model_pb2.UnloadModelRequest(name=MODEL, version=7)))
        assert failure.reason == "MODEL_NOT_FOUND"


@pytest.mark.slow
async def test_a_version_that_only_a_session_asked_for_does_not_serve_by_default(three: Process, folder: Path) -> None:
    """Else new sessions would start in another version in one worker than in the others."""
    add(folder, 2)
    async with each(three) as callers:
        opening = session_pb2.OpenSessionRequest(model=MODEL, session_id="a", version=2, mode=pb.OPEN_MODE_CREATE)
        assert (await callers[0].sessions.OpenSession(opening)).session.version == 2
        assert await served(callers[0]) == [(1, True), (2, False)]
        assert await served(callers[1]) == [(1, True)]


@pytest.mark.slow
async def test_a_worker_that_is_killed_while_a_model_is_loaded_comes_up_with_it(three: Process, folder: Path) -> None:
    """It stands still while the others are asked, and does not answer any more: they do not wait for it for ever."""
    add(folder, 2)
    async with each(three) as callers:
        (victim,) = random.Random(3).sample(workers(three), 1)
        os.kill(victim, signal.SIGSTOP)
        loads = [asyncio.create_task(load(one, 2)) for one in callers]
        done, _ = await asyncio.wait(loads, timeout=2)
        assert not done, "it is decided when all have made it ready"
        os.kill(victim, signal.SIGKILL)
        answers = await asyncio.gather(*loads, return_exceptions=True)
        assert [isinstance(one, grpc.aio.AioRpcError) for one in answers].count(True) == 1, "the victim's own"
        assert all(one.version == 2 for one in answers if not isinstance(one, BaseException))
    three.wait_for("(?s)status -9.*ready: gRPC")
    async with each(three) as callers:
        assert [await served(one) for one in callers] == [[(1, False), (2, True)]] * 3


@pytest.mark.slow
async def test_a_kill_at_any_moment_of_a_load_leaves_all_workers_with_the_same_models(
    three: Process, folder: Path
) -> None:
    """The one that was asked, or another, at moments from before to after; versions come and go meanwhile."""
    chance, killed = random.Random(12), 0
    for version in range(2, 8):
        add(folder, version)
        async with each(three) as callers:
            asked = chance.choice(callers)
            loading = asyncio.create_task(load(asked, version))
            await asyncio.sleep(chance.uniform(0, 0.15))
            os.kill(chance.choice(workers(three)), signal.SIGKILL)
            killed += 1
            with contextlib.suppress(grpc.aio.AioRpcError):
                await loading
        wait_until(partial(is_back, three, killed), "it has started again", 60)
        async with each(three) as callers:
            found = [await served(one) for one in callers]
            assert found[0] == found[1] == found[2]
            if loading.exception() is None:
                assert (version, True) in found[0], "who heard that it is loaded finds it in all of them"


async def test_metrics_of_all_workers_are_on_one_port_and_probes_speak_for_all(three: Process) -> None:
    async with each(three) as callers:
        for number, caller in enumerate(callers):
            await caller.step(MODEL, f"s{number}", ONE)
        status, text = http(three, "/metrics")
        assert status == 200
        sessions = re.findall(r'^statestream_sessions\{.*worker="(\d)".*\} 1.0$', text, re.MULTILINE)
        assert sorted(sessions) == ["0", "1", "2"]
        assert len(re.findall(r'^statestream_steps_total\{.*worker="\d".*\} 2.0$', text, re.MULTILINE)) == 3
        assert len(re.findall(r'^statestream_batch_rows_bucket\{.*le="\+Inf".*\} ', text, re.MULTILINE)) == 3
        assert text.count("# TYPE statestream_sessions gauge") == 1
    wait_until(lambda: http(three, "/readyz") == (200, "ready: 3 of 3 workers\n"), "all are ready")
    assert infer(three, 0)[1]["outputs"][0]["data"] == [1]
    assert infer(three, 1)[1]["outputs"][0]["data"] == [2]
    assert http(three, "/healthz") == (200, "alive\n")
    victim = workers(three)[0]
    os.kill(victim, signal.SIGSTOP)
    _, text = http(three, "/metrics")
    assert text.count("statestream_steps_total{") == 2, "who does not answer is left out"
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "2 of 3 workers; worker" in http(three, "/readyz")[1], "it is told")
    assert http(three, "/readyz")[0] == 200
    _, text = http(three, "/metrics")
    assert text.count("statestream_sessions{") == 2, "gauges of the dead are gone"
    assert len(re.findall(r'statestream_worker_up\{worker="\d"\} 1.0', text)) == 2
    assert len(re.findall(r'statestream_worker_restarts_total\{worker="\d"\} 1.0', text)) == 1
    wait_until(lambda: http(three, "/readyz") == (200, "ready: 3 of 3 workers\n"), "it is back")


def infer(server: Process, position: int, hidden: int = 0) -> tuple[int, dict[str, Any]]:
    """Sends a step of one sequence over REST: adds 1."""
    port = server.options[server.options.index("--http-port") + 1]
    values = {"sequence_id": "rest", "sequence_start": not position, "sequence_position": position}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    body = (" " * hidden + json.dumps({"parameters": values, "inputs": [tensor]})).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer", body, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.slow
async def test_a_sequence_over_rest_goes_on_in_whichever_worker_answers(three: Process) -> None:
    """Also where that one is killed: who counts sends again, and what was applied is applied once.

    Some requests hide their sequence behind spaces, so that their connection says who answers.
    """
    chance = random.Random(4)
    wait_until(lambda: http(three, "/readyz")[1] == "ready: 3 of 3 workers\n", "all are ready")
    killed = 0
    for position in range(60):
        if position % 20 == 10:
            os.kill(chance.choice(workers(three)), signal.SIGKILL)
            killed += 1
        async with asyncio.timeout(30):
            while True:
                status, answer = await asyncio.to_thread(infer, three, position, 100_000 * (position % 3))
                if status == 200:
                    break
                assert status in (409, 503), answer
                await asyncio.sleep(0.02)
        assert answer["outputs"][0]["data"] == [position + 1]
    assert "INTERNAL" not in three.output
    wait_until(lambda: http(three, "/readyz")[1] == "ready: 3 of 3 workers\n", "none is on its way up any more")
    assert http(three, "/v2/nothing")[0] == 404
    port = int(three.options[three.options.index("--http-port") + 1])
    with contextlib.closing(await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port))) as raw:
        head = b"POST /v2/models/counter/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        raw.sendall(head + b"2\r\nno\r\n0\r\n\r\n")
        assert (await asyncio.to_thread(raw.recv, 4096)).startswith(b"HTTP/1.1 400")


async def test_sighup_reloads_settings_and_models_in_every_worker(three: Process, folder: Path, tmp_path: Path) -> None:
    """What can change does; if anything else changed too, nothing does, and that is said."""
    config = tmp_path / "config.toml"
    add(folder, 2)
    config.write_text("hibernate-after = 1\nretention = ['100', 'counter=50']\nlog-level = 'debug'\n")
    three.signal(signal.SIGHUP)
    three.wait_for("settings read anew in every worker: hibernate_after, model_retention, retention|retention")
    three.wait_for("models loaded anew")
    async with each(three) as callers:
        assert [await served(one) for one in callers] == [[(1, False), (2, True)]] * 3
        for number, caller in enumerate(callers):
            await caller.step(MODEL, f"s{number}", ONE)
        # They leave memory after a second now, in every worker.
        wait_until(
            lambda: not re.findall(r"^statestream_sessions\{.*\} 1.0$", http(three, "/metrics")[1], re.M), "sleep"
        )
    config.write_text("hibernate-after = 7\nmax-sessions = 7\n")
    three.signal(signal.SIGHUP)
    three.wait_for("the settings stay as they are: limits cannot change while the server runs")
