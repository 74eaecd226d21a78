"""The console of several workers: it speaks for all, and finds the one that has a session."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from statestream.v1 import server_pb2, server_pb2_grpc
from statestream_server.workers import console
from tests.support import models
from tests.support.serving import Process, lasting_port, process
from tests.support.speaker import Speaker

READY = r"ready: gRPC"
ONE = {"x": np.ones((2, 1), np.float32)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Two workers; what is stepped is not saved while the tests run."""
    top = tmp_path_factory.mktemp("two")
    folder = models.write(top / "models", "counter")
    options = ("--store", f"sqlite:{top / 'sessions.db'}", "--workers", "2", "--checkpoint-interval", "600")
    with process(folder, *options, "--http", "--http-port", str(lasting_port())) as server:
        server.wait_for(f"(?s){READY}.*{READY}")
        yield server


@contextlib.asynccontextmanager
async def each(server: Process) -> AsyncIterator[list[Any]]:
    """A channel to each worker: the kernel spreads connections, so there are as many as it takes."""
    found = dict[str, Any]()
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(30):
        while len(found) < 2:
            channel = grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
            stack.push_async_callback(channel.close)
            info = await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(server_pb2.GetServerInfoRequest())
            found.setdefault(info.server_id, channel)
        yield [*found.values()]


def call(server: Process, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    port = server.options[server.options.index("--http-port") + 1]
    sent = {"X-Statestream": "console"} if headers is None else headers
    data = None
    if body is not None:
        data, sent = json.dumps(body).encode(), {**sent, "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, sent)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def told(server: Process, path: str, body: object = None, **query: Any) -> Any:
    asked = f"?{urllib.parse.urlencode(query)}" if query else ""
    status, data = await asyncio.to_thread(call, server, f"/console/api/{path}{asked}", body)
    assert status == 200, data
    return json.loads(data)


@contextlib.asynccontextmanager
async def sessions_in_each(server: Process, *ids: str) -> AsyncIterator[list[Speaker]]:
    """A session in each worker, of two steps, as its client has it open."""
    async with each(server) as channels, contextlib.AsyncExitStack() as stack:
        speakers = [await stack.enter_async_context(Speaker(channel, "counter")) for channel in channels]
        for speaker, name in zip(speakers, ids, strict=True):
            await speaker.open_one(name)
            await speaker.step(0, 0, ONE)
        yield speakers


async def test_it_speaks_for_all_workers(two: Process) -> None:
    async with sessions_in_each(two, "all-a", "all-b"):
        assert (await told(two, "about"))["workers"] == 2
        (model,) = (await told(two, "models"))["models"]
        assert (model["sessions"], model["batches"]) == (2, 4)
        found = await told(two, "statistics")
        assert (found["sessions"], found["streams"]) == (2, 2)
        assert found["all"]["steps"] == sum(worker["steps"] for worker in found["workers"]) == 4
        assert [worker["sessions"] for worker in found["workers"]] == [1, 1]
        replicas = (await told(two, "replicas"))["replicas"]
        assert sorted(each["worker"] for each in replicas) == [0, 1]
        listed = (await told(two, "sessions", prefix="all-"))["sessions"]
        assert [each["id"] for each in listed] == ["all-a", "all-b"]
        # Each is told by the worker that has it: what the store has is older.
        assert [each["position"] for each in listed] == [2, 2]
        assert sorted(each["where"] for each in listed) == ["in worker 0", "in worker 1"]


async def test_a_session_is_watched_copied_and_deleted_in_whichever_worker_it_is(two: Process) -> None:
    names = ["tap-a", "tap-b"]
    async with sessions_in_each(two, *names) as speakers:
        for speaker, name in zip(speakers, names, strict=True):
            asked = {"model": "counter", "id": name}
            assert (await told(two, "watch", **asked))["steps"] == []
            await speaker.step(0, 2, ONE)
            found = await told(two, "watch", **asked)
            assert [each["position"] for each in found["steps"]] == [3, 4]
            assert found["session"]["where"].startswith("in worker ")
            assert found["session"]["streamed"]
            status, data = await asyncio.to_thread(call, two, "/console/api/step", {**asked, "inputs": {"x": [[1]]}})
            assert (status, json.loads(data)["error"]["reason"]) == (409, "UNSUPPORTED")  # Its client would lose it.
            assert (await told(two, "fork", {**asked, "fork": f"{name}-copy"}))["position"] == 4
            stepped = await told(two, "step", {"model": "counter", "id": f"{name}-copy", "inputs": {"x": [[1]]}})
            assert stepped["position"] == 5
            await told(two, "delete", {"model": "counter", "id": f"{name}-copy"})
    left = (await told(two, "sessions", prefix="tap-"))["sessions"]
    assert [each["id"] for each in left] == names


async def test_pages_go_through_the_sessions_of_all_workers_once(two: Process) -> None:
    async with each(two) as channels, contextlib.AsyncExitStack() as stack:
        speakers = [await stack.enter_async_context(Speaker(channel, "counter")) for channel in channels]
        for number in range(7):
            await speakers[number % 2].open_one(f"page-{number}")
        ids, after = list[str](), ""
        while True:
            found = await told(two, "sessions", prefix="page-", size=2, after=after)
            ids += [each["id"] for each in found["sessions"]]
            if not (after := found["next"]):
                break
    assert ids == [f"page-{number}" for number in range(7)]


async def test_refusals_of_all_workers_are_counted_together(two: Process) -> None:
    for _ in range(4):
        status, _ = await asyncio.to_thread(call, two, "/console/api/session?model=counter&id=nobody")
        assert status == 404
    found = [each for each in (await told(two, "refusals"))["refusals"] if "nobody" in each["message"]]
    assert [each["reason"] for each in found] == ["SESSION_NOT_FOUND"]
    assert found[0]["count"] >= 8  # Each worker was asked.


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/console/api/models", None, {}, 403),
        ("/console/api/watch?model=counter&id=x", None, {}, 403),
        ("/console/api/nothing", None, None, 404),
        ("/console/api/watch?model=counter", None, None, 400),
        ("/console/api/step", [1], None, 400),
        ("/console/api/step", {"model": 1, "id": {}}, None, 400),
        ("/console/api/delete", {"model": "counter", "id": "\udc00"}, None, 400),
        ("/console/api/sessions?after=x", None, None, 400),
        ("/console/api/step", {"model": "x" * (1 << 21)}, None, 400),
    ],
)
async def test_what_cannot_be_asked_is_refused_as_by_one_process(
    two: Process, path: str, body: object, headers: dict[str, str] | None, status: int
) -> None:
    came, data = await asyncio.to_thread(call, two, path, body, headers)
    assert came == status, data


@pytest.mark.parametrize(("path", "status"), [("/console/api/models", b"403"), ("/v2", b"200")])
async def test_a_caller_of_http_1_0_needs_to_name_no_host(two: Process, path: str, status: bytes) -> None:
    """The console answers by names that nobody can make lead to it; none is none of these."""
    port = two.options[two.options.index("--http-port") + 1]
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    writer.write(f"GET {path} HTTP/1.0\r\nX-Statestream: console\r\n\r\n".encode())
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.split()[1] == status, answer


async def test_the_page_is_there(two: Process) -> None:
    status, data = await asyncio.to_thread(call, two, "/console/console.js")
    assert status == 200
    assert b"workers" in data


@pytest.mark.slow
async def test_it_answers_while_a_worker_is_away(two: Process) -> None:
    async with sessions_in_each(two, "away-a", "away-b"):
        children = Path(f"/proc/{two.pid}/task/{two.pid}/children").read_text().split()
        serving = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(serving[0], signal.SIGSTOP)
        try:
            found = await told(two, "statistics")
            assert [each["sessions"] > 0 for each in found["workers"]] == [True]
        finally:
            os.kill(serving[0], signal.SIGCONT)


def test_a_page_ends_where_one_worker_has_told_no_more() -> None:
    def told(name: str, *, resident: bool = False, epoch: int = 1) -> dict[str, Any]:
        return {"model": "m", "id": name, "resident": resident, "epoch": epoch, "position": 0, "where": "in the store"}

    found = console._sessions(
        [
            (0, {"sessions": [told("a"), told("c", resident=True)], "next": "behind c"}),
            (1, {"sessions": [told("a", resident=True), told("b"), told("c"), told("d")], "next": "behind d"}),
        ]
    )
    assert [(each["id"], each["where"]) for each in found["sessions"]] == [
        ("a", "in worker 1"),
        ("b", "in the store"),
        ("c", "in worker 0"),
    ]
    assert found["next"] == "behind c"
