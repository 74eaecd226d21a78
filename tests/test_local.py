"""`statestream.local`: a server in a child process, gone with its caller however that one ends; what it says if not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import statestream
from statestream import aio, owned
from tests.support import models

pytest_plugins = ["statestream_server.testing"]


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with "counter": y is the sum of all x."""
    return models.write(tmp_path_factory.mktemp("models"), "counter")


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process that is no child of ours has ended, or does so soon."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            return bool(select.select([handle], [], [], seconds)[0])
        finally:
            os.close(handle)
    return True


@contextlib.contextmanager
def caller(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process with a local server; the script prints its pid first."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


SLOW = ("exits", "forked", "is dropped")
CALLER = """
import os, sys, time, statestream
client = statestream.local(sys.argv[1])
session = client.session("counter", "a")
session.step([1.0])
print(client.server.pid, client.server.address, flush=True)
"""


def test_a_client_and_its_server_live_and_leave_together(counter: Path) -> None:
    with statestream.local(counter) as client:
        server = client.server
        assert server is not None
        folder = Path(server.address.removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o077 == 0, "nobody else may call it"
        with client.session("counter") as session:
            assert session.step([[1], [2]]).tolist() == [[1], [3]]
        assert server.running
        assert f"server {server.pid}" in repr(server)
        assert "serving counter" in server.log()
        assert "CUDA" not in server.log(), "nobody asked"
        with statestream.connect(server.address) as second:
            assert second.models()[0].name == "counter"
    assert not server.running
    assert not folder.exists()
    assert "serving counter" in server.log(), "it can be read afterwards"
    server.close()


async def test_the_asyncio_twin(counter: Path) -> None:
    async with aio.local(counter / "counter" / "1" / "model.onnx") as client:
        server = client.server
        assert server is not None
        async with client.session("counter") as session:
            assert (await session.step([2])).tolist() == [2]
    assert not server.running


async def test_a_start_that_is_cancelled_leaves_nothing(counter: Path) -> None:
    async def start() -> aio.Client:
        return await aio.local(counter)

    task = asyncio.create_task(start())
    await asyncio.sleep(0)
    servers = [thing for thing in gc.get_objects() if type(thing) is owned.Owned and thing.running]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(server.running for server in servers)


@pytest.mark.parametrize("end", ["is killed", *(pytest.param(end, marks=pytest.mark.slow) for end in SLOW)])
def test_it_goes_with_its_caller(counter: Path, end: str) -> None:
    more = {
        "exits": "",
        "is killed": "sys.stdin.read()",
        # A copy of the caller outlives it, with a copy of its end of the pipe.
        "forked": "\nif os.fork() == 0:\n    time.sleep(30); os._exit(0)\nsys.stdin.read()",
        "is dropped": "del client, session\nimport gc; gc.collect()\nsys.stdin.read()",
    }[end]
    with caller(CALLER + more, str(counter)) as process:
        assert process.stdout is not None
        pid, address = process.stdout.readline().split()
        if end in ("is killed", "forked"):
            process.send_signal(signal.SIGKILL)
        assert gone(int(pid))
        folder = Path(address.removeprefix("unix:")).parent
        due = time.monotonic() + 10
        while folder.exists() and time.monotonic() < due:
            time.sleep(0.01)
        assert not folder.exists()


def test_a_caller_that_is_killed_at_once_leaves_no_folder(counter: Path) -> None:
    """Its server has imported nothing yet, and hears no signal as a server does."""
    script = (
        "import sys; from statestream.owned import Owned; print(Owned(sys.argv[1], {}).address, flush=True); input()"
    )
    with caller(script, str(counter)) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip().removeprefix("unix:")).parent
        process.send_signal(signal.SIGKILL)
        due = time.monotonic() + 10
        while folder.exists() and time.monotonic() < due:
            time.sleep(0.01)
        assert not folder.exists()


COPIED = """
import gc, os, sys, statestream

with statestream.local(sys.argv[1]) as client:
    child = os.fork()
    if child == 0:
        try:
            client.close()
            del client
            gc.collect()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert client.session("counter").step([1]).tolist() == [1]
"""


def test_a_copy_of_the_caller_leaves_the_server_alone(counter: Path) -> None:
    """In a process of its own: a copy of this one would have the channels of all tests before to collect."""
    subprocess.run([sys.executable, "-c", COPIED, str(counter)], check=True, timeout=60)


@pytest.mark.slow
def test_sessions_survive_in_a_file(counter: Path, tmp_path: Path) -> None:
    for position in (1, 2):
        with statestream.local(counter, store=f"sqlite:{tmp_path / 's.db'}", drain_grace=5) as client:
            session = client.session("counter", "kept")
            session.step([1])
            assert session.position == position


WRONG: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    (
        "no file",
        "nowhere.onnx",
        {},
        FileNotFoundError,
        "nowhere.onnx does not exist.*expected a .onnx file or a folder",
    ),
    ("nothing", [], {}, ValueError, "models is empty; expected a .onnx file"),
    ("a number", 5, {}, TypeError, "models is of type builtins.int; expected the path of a .onnx file"),
    ("an option", None, {"durabilty": "sync"}, ValueError, "(?s)--durabilty.*--durability"),
    ("a type", None, {"threads": [1]}, TypeError, r"threads is \[1\]; expected a text, a number or a bool"),
    ("a store", None, {"store": "mysql"}, statestream.ServerUnavailable, "'mysql' names no store; expected memory"),
]


@pytest.mark.parametrize(("told", "options", "kind", "says"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG])
def test_what_cannot_be_says_so(counter: Path, told: Any, options: dict[str, Any], kind: Any, says: str) -> None:
    with pytest.raises(kind, match=says):
        statestream.local(counter if told is None else told, **options)


def test_a_file_that_cannot_be_served_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(statestream.ServerUnavailable, match=r"(?s)ended \(exit status 1\)\. It said:.*bad\.onnx"):
        statestream.local(tmp_path / "bad.onnx")


def test_a_start_that_takes_too_long_is_ended(counter: Path) -> None:
    with pytest.raises(statestream.ServerUnavailable, match=r"gave no answer within 0\.01 s"):
        statestream.local(counter, timeout=0.01)


def test_modules_are_the_exporters_business() -> None:
    class Module:
        def forward(self) -> None: ...
        def state_dict(self) -> None: ...

    with pytest.raises(TypeError, match="statestream_export.export.*then local"):
        statestream.local(Module())  # type: ignore[arg-type]


def test_without_the_server_it_says_what_to_install(counter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owned, "find_spec", lambda name: None)
    with pytest.raises(statestream.Unsupported, match=r"pip install 'statestream-server\[cpu\]'"):
        statestream.local(counter)


@pytest.mark.parametrize("number", [1, 2])
def test_the_fixture_starts_a_server_once(
    statestream_local: Callable[..., statestream.Client], counter: Path, number: int
) -> None:
    client = statestream_local(counter)
    assert client is statestream_local(counter)
    assert client.session("counter").step([number]).tolist() == [number]
