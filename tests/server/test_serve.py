"""`statestream serve` as a process: how it starts, how it refuses to start, how it leaves."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2, server_pb2, server_pb2_grpc
from statestream_server import process as process_module
from statestream_server.cli import serve
from statestream_server.filecommands import inspect
from statestream_server.settings import Settings, check_reach
from tests.support import models
from tests.support.calls import DEADLINE, Caller, connected
from tests.support.serving import Process, launched, process
from tests.support.speaker import Speaker

ONE = {"x": np.ones((2, 1), np.float32)}


def refused(folder: Path, *options: str, port: int = 0) -> str:
    """What a server says that cannot start: one line, no traceback, exit status 1. gRPC may have logged before."""
    with launched(Process(folder, [*options, "--log-level", "error"], port=port)) as server:
        status = server.wait()
    lines = [line for line in server.output.splitlines() if line.startswith("Error: ")]
    assert status == 1, server.output
    assert "Traceback" not in server.output
    assert [server.output.splitlines()[-1]] == lines, server.output
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("models"), "counter")


async def test_a_broken_model_does_not_keep_the_others_from_serving(tmp_path: Path) -> None:
    """One line names file and reason; ModelService shows the failure; the others serve."""
    models.write(tmp_path, "counter", "gru")
    broken = tmp_path / "gru" / "1" / "model.onnx"
    broken.write_bytes(b"this is no model")
    with process(tmp_path, "--store", "memory") as server:
        lines = [line for line in server.lines if str(broken) in line]
        assert len(lines) == 1, server.output
        assert "not a readable ONNX file" in lines[0]
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            listed = (await Caller(channel).models.ListModels(model_pb2.ListModelsRequest())).models
            assert {model.name: bool(model.error) for model in listed} == {"counter": False, "gru": True}
            await speaker.open_one("a")
            await speaker.step(0, 0, ONE)


def test_a_taken_port_is_refused(folder: Path) -> None:
    with process(folder, "--store", "memory") as server:
        line = refused(folder, "--store", "memory", port=server.port)
        assert f"127.0.0.1:{server.port}" in line
        assert "another server" in line


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    line = refused(tmp_path / "nowhere", "--store", "memory")
    assert str(tmp_path / "nowhere") in line
    assert "NAME/VERSION/model.onnx" in line


@pytest.mark.parametrize("store", ["sqlite:{file}/sessions.db", "sqlite:{folder}", "sqlite:{file}"])
def test_an_unusable_store_is_refused(folder: Path, tmp_path: Path, store: str) -> None:
    """A path below a file, a folder, a file that is no database."""
    file = tmp_path / "file"
    file.write_text("this is no database, and it is longer than a header\n" * 50)
    line = refused(folder, "--store", store.format(file=file, folder=tmp_path))
    assert str(tmp_path) in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--store", "memory", "--durability", "sync"), "--durability none"),
        (("--store", "mysql://localhost"), "names no store"),
        (("--host", "0.0.0.0"), "--insecure"),
        (("--host", "::"), "--insecure"),
        (("--host", ""), "--insecure"),
        (("--host", "0.0.0.0", "--workers", "2"), "--insecure"),
        (("--host", "nowhere.invalid"), "nowhere.invalid is no address of this machine"),
        (("--store", "memory", "--device", "tpu"), "tpu"),
    ],
)
def test_settings_that_contradict_are_refused(folder: Path, options: tuple[str, ...], said: str) -> None:
    assert said in refused(folder, *options)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--port", "65536", "0<=x<=65535"),
        ("--http-port", "-1", "0<=x<=65535"),
        ("--workers", "0", "x>=1"),
        ("--checkpoint-interval", "0", "x>=0.01"),
        ("--threads", "-1", "x>=0"),
        ("--drain-grace", "-1", "x>=0"),
        ("--hibernate-after", "0", "x>=1"),
        ("--retention", "-1", "x>=0"),
        ("--max-sessions", "0", "x>=1"),
        ("--max-queued-bytes", "0", "x>=1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, option: str, value: str, expected: str) -> None:
    """What came and what was expected, before anything is started."""
    result = CliRunner().invoke(serve, [str(tmp_path), option, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output
    assert re.search(rf"{re.escape(value)}(\.0)? is not in the range {re.escape(expected)}", result.output)


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("option", ["--checkpoint-interval", "--drain-grace", "--hibernate-after", "--retention"])
def test_times_are_finite(tmp_path: Path, option: str, value: str) -> None:
    result = CliRunner().invoke(serve, [str(tmp_path), option, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output
    assert f"{value} is not a finite number of seconds" in result.output


@pytest.mark.parametrize(
    ("options", "file", "environment", "expected"),
    [
        ([], "", "", (0.0, {})),
        (["--retention", "60"], "", "", (60.0, {})),
        (["--retention", "a=5", "--retention", "60", "--retention", "b=c=0"], "", "", (60.0, {"a": 5.0, "b=c": 0.0})),
        ([], "retention = 60", "", (60.0, {})),
        ([], 'retention = ["60", "a=5"]', "", (60.0, {"a": 5.0})),
        ([], "", "60 a=5", (60.0, {"a": 5.0})),
        (["--retention", "a=-1"], "", "", "x>=0"),
        (["--retention", "=1"], "", "", "names no model"),
        (["--retention", "a=b"], "", "", "not a valid"),
    ],
)
def test_retention_is_said_for_all_and_for_single_models(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    file: str,
    environment: str,
    expected: tuple[float, dict[str, float]] | str,
) -> None:
    found = list[tuple[float, Any]]()
    monkeypatch.setattr(process_module, "run", lambda settings, *_, **__: found.append(
        (settings.retention, settings.model_retention)))  # fmt: skip
    (tmp_path / "config.toml").write_text(file)
    if environment:
        monkeypatch.setenv("STATESTREAM_RETENTION", environment)
    result = CliRunner().invoke(serve, [str(tmp_path), "--config", str(tmp_path / "config.toml"), *options])
    if isinstance(expected, str):
        assert expected in result.output
    else:
        assert found == [expected], result.output


def test_a_config_file_is_read_and_checked(folder: Path, tmp_path: Path) -> None:
    """Values of a TOML file count where no flag says otherwise; an unknown one is named."""
    config = tmp_path / "statestream.toml"
    config.write_text('store = "memory"\nmax-sessions = 7\n')

    async def limits(address: str) -> server_pb2.Limits:
        async with connected(address) as channel:
            stub = server_pb2_grpc.ServerServiceStub(channel)
            return (await stub.GetServerInfo(server_pb2.GetServerInfoRequest())).limits

    with process(folder, "--config", str(config), "--max-queued-bytes", "12345") as server:
        found = asyncio.run(limits(server.address))
        assert (found.max_sessions, found.max_queued_bytes) == (7, 12345)
    config.write_text("max-sesions = 7\n")
    with launched(Process(folder, ["--config", str(config)])) as server:
        assert server.wait() == 2
    assert "max_sesions" in server.output.replace("-", "_")


async def test_sigterm_drains(folder: Path, tmp_path: Path) -> None:
    """Go-away on every stream, health NOT_SERVING, everything applied is saved, exit status 0."""
    store = tmp_path / "sessions.db"
    # Nothing is saved before the end: the interval is longer than the test.
    with process(folder, "--store", f"sqlite:{store}", "--checkpoint-interval", "600") as server:
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            await speaker.open(*(f"s{number}" for number in range(20)))
            await speaker.send_chunk(range(20), [0] * 20, [ONE] * 20)
            assert all(answer.durable == 0 for answer in await speaker.answers(20))
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
            server.signal(signal.SIGTERM)
            await asyncio.wait_for(speaker.go_away.wait(), DEADLINE)
            async with asyncio.timeout(DEADLINE):
                assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await speaker.step(0, 2, ONE)).end == 4, "what is open is served to the end"
            await speaker.half_close()
            assert await speaker.read() is None
            health.cancel()
        assert await asyncio.to_thread(server.wait) == 0
        server.start()
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            opened = await speaker.open(*(f"s{number}" for number in range(20)), mode=pb.OPEN_MODE_RESUME)
            assert [opened[handle].position for handle in range(20)] == [4, *[2] * 19]  # type: ignore[union-attr]
            assert (await speaker.step(0, 4, ONE)).outputs["y"].ravel().tolist() == [5, 6]


async def test_a_client_that_does_not_leave_is_left(folder: Path, tmp_path: Path) -> None:
    """A stream that stays open ends soon after the go-away; its sessions are saved all the same."""
    store = tmp_path / "sessions.db"
    with process(folder, "--store", f"sqlite:{store}", "--checkpoint-interval", "600") as server:
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            await speaker.open_one("a")
            await speaker.step(0, 0, ONE)
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0
    with sqlite3.connect(store) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    with process(folder, "--store", f"sqlite:{store}") as server:
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            assert (await speaker.open_one("a")).position == 2


async def test_a_second_signal_exits_at_once(folder: Path) -> None:
    """Whoever sends SIGTERM twice does not want to wait for the drain."""
    with process(folder, "--store", "memory") as server:
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            await speaker.open_one("a")
            server.signal(signal.SIGTERM)
            await asyncio.wait_for(speaker.go_away.wait(), DEADLINE)
            ended = asyncio.create_task(asyncio.to_thread(server.wait))
            while not ended.done():  # One that comes within a moment of the first counts as that one.
                server.signal(signal.SIGTERM)
                await asyncio.wait([ended], timeout=0.1)
            assert ended.result() == 130
        assert "Traceback" not in server.output, server.output


@pytest.mark.parametrize(
    ("options", "environment", "config"),
    [(("--insecure",), {}, ""), ((), {"STATESTREAM_INSECURE": "1"}, ""), ((), {}, "insecure = true\n")],
    ids=["flag", "environment", "file"],
)
def test_others_are_let_in_only_where_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], environment: dict[str, str], config: str
) -> None:
    began: list[Settings] = []
    monkeypatch.setattr("statestream_server.process.run", lambda settings, _level, **_: began.append(settings))
    file = tmp_path / "statestream.toml"
    file.write_text(config)
    command = [str(tmp_path), "--config", str(file), "--host", "0.0.0.0", "--store", "memory", *options]
    assert CliRunner().invoke(serve, command, env=environment).exit_code == 0
    check_reach(began[0])
    assert CliRunner().invoke(serve, [str(tmp_path), "--store", "memory"]).exit_code == 0
    assert (began[1].host, began[1].insecure) == ("127.0.0.1", False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_this_machine_is_always_let_in(tmp_path: Path, host: str) -> None:
    check_reach(Settings((tmp_path,), host=host))


def test_a_file_is_described_as_json_too(folder: Path) -> None:
    file = folder / "counter" / "1" / "model.onnx"
    found = json.loads(CliRunner().invoke(inspect, [str(file), "--json"]).output)
    words = CliRunner().invoke(inspect, [str(file)]).output
    assert found["kind"] == ["session, states: client.session, one row of memory each"]
    assert all(value in words for values in found.values() for value in values)
