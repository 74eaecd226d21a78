"""Servers for tests: one inside this process, and one as a process that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from statestream_server import app
from statestream_server.engine.table import Table
from statestream_server.settings import Durability, Limits, Settings
from statestream_server.stores import default_folder
from tests.support.calls import DEADLINE, connected
from tests.support.speaker import Speaker, fresh_id

_READY = re.compile(r"ready: gRPC on (\S+):(\d+)")
# The command itself, without the console script: tests also run where only the sources are installed.
_SERVE = "import sys; from statestream_server.cli import serve; sys.argv[0] = 'statestream serve'; serve()"
TEST_DEVICE: Final = os.environ.get("STATESTREAM_TEST_DEVICE", "cpu")
"""Where the models of started servers run; `make gpu` sets it."""
TEST_EDGE: Final = os.environ.get("STATESTREAM_EDGE", "")
"""The edge of started servers, "" for the usual one; the server's command takes it from there, too."""
_PROOFS: Final = tempfile.TemporaryDirectory(prefix="statestream-proofs-")
PROOFS: Final = Path(_PROOFS.name)
"""The folder of kept verdicts that the started servers of a run share, so that each file is tried once.

Servers whose trials are the point are given `proofs=None`, or --no-proof-cache.
"""
EDGES: Final = (TEST_EDGE,) if TEST_EDGE else ("h2", "grpcio")
"""The edges that what is said of each of them is tested on."""


def free_settings(models: Path, **more: Any) -> Settings:
    """Settings for a server on a free local port, with the memory store unless told otherwise."""
    limits = Limits(**more.pop("limits", {}))
    store = more.pop("store", "memory")
    durability = more.pop("durability", Durability.NONE if store == "memory" else Durability.INTERVAL)
    base: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "http_port": None, "device": "cpu", "proofs": PROOFS}
    if TEST_EDGE:
        base["edge"] = TEST_EDGE
    return Settings((models,), store=store, durability=durability, limits=limits, **(base | more))


@dataclass
class Local:
    """A server in this process and a channel to it."""

    running: app.Running
    channel: Any

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.running.port}"

    @property
    def server(self) -> Any:
        return self.running.server

    def table(self, model: str) -> Table:
        table = self.server.registry.get(model).table
        assert table is not None
        return table

    @contextlib.contextmanager
    def engine_held(self) -> Iterator[None]:
        """While this is entered, chunks queue up and nothing runs."""
        scheduler, engine = self.server.engine.scheduler, self.server.engine
        choose, scheduler.choose = scheduler.choose, lambda queues: None
        lone, engine.lone = engine.lone, None
        try:
            yield
        finally:
            scheduler.choose, engine.lone = choose, lone
            engine.wake()

    async def until(self, wanted: Any) -> None:
        """Returns once `wanted()` holds. Nobody tells when a server's rooms change, so they are looked at again.

        A millisecond lies between two looks: gRPC's threads need the interpreter too.
        """
        async with asyncio.timeout(DEADLINE):
            while not wanted():  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def serving(models: Path, **settings: Any) -> AsyncIterator[Local]:
    """A server inside this process, drained at the end."""
    async with (
        app.running(free_settings(models, **settings)) as running,
        connected(f"127.0.0.1:{running.port}") as channel,
    ):
        yield Local(running, channel)


@dataclass
class Process:
    """`statestream serve` as a process of its own.

    Attributes:
        edge: Its edge; "" for the usual one.
        program: What Python is given to run; "" for the command itself.
        lines: What it wrote to stdout and stderr so far.
    """

    models: Path | tuple[Path, ...]
    options: list[str]
    host: str = "127.0.0.1"
    port: int = 0
    edge: str = TEST_EDGE
    program: str = ""
    lines: list[str] = field(default_factory=list)

    def start(self) -> Process:
        """Starts it and waits until it says that it is ready; on the same port as before, if it ran before."""
        self.launch()
        self.ready()
        return self

    def ready(self) -> None:
        """Waits until it says that it is ready."""
        ready = self.wait_for(_READY.pattern)
        assert ready is not None, f"the server ended with {self._process.wait()}:\n{self.output}"
        self.port = int(ready[2])

    def launch(self) -> None:
        """Starts it without waiting for anything."""
        self.port = self.port or lasting_port(self.host)
        pointed = [self.models] if isinstance(self.models, Path) else self.models
        command = [
            sys.executable,
            "-c",
            self.program or _SERVE,
            *map(str, pointed),
            "--host",
            self.host,
            "--port",
            str(self.port),
        ]
        edge = {"STATESTREAM_EDGE": self.edge} if self.edge else {}
        self._share_proofs()
        self.lines.clear()
        self._ended = False
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [*command, "--no-http", "--device", TEST_DEVICE, *self.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",  # gRPC's core says what callers sent.
            # Bytecode is kept, whatever this process does: many servers are started here.
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "", **edge},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _share_proofs(self) -> None:
        """Has a file of sqlite's that is new keep its verdicts in the folder that all share.

        Other stores have them in the user's state folder, which is shared as it is.
        """
        for store in self.options:
            if store.startswith("sqlite:"):
                place = default_folder(store, "proofs")
                if place.parent.is_dir() and not os.path.lexists(place):
                    with contextlib.suppress(OSError):  # The place may be one that the server is to refuse.
                        place.symlink_to(PROOFS)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str] | None:
        """The first match of a pattern in what it wrote; None where it ended without one."""
        with self._news:
            found = self._news.wait_for(lambda: self._ended or re.search(pattern, self.output), DEADLINE)
            assert found, f"{pattern!r} did not come within {DEADLINE} s:\n{self.output}"
            return re.search(pattern, self.output)

    def kill(self) -> None:
        """SIGKILL: nothing is saved any more."""
        self._process.kill()
        self._process.wait()
        self._read_to_the_end()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        status = self._process.wait(DEADLINE)
        self._read_to_the_end()
        return status

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                with self._news:
                    self.lines.append(line)
                    self._news.notify_all()
        # Part of the report, where the test has failed.
        print(f"{self.address} said:\n{self.output}")
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _read_to_the_end(self) -> None:
        self._reader.join(DEADLINE)
        assert not self._reader.is_alive(), f"somebody still has the output of process {self.pid} open"


def lasting_port(host: str = "127.0.0.1") -> int:
    """A free port that no connection takes for its own end while the server that listens there is down."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # Below those that connections get.
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port


@contextlib.contextmanager
def process(models: Path | tuple[Path, ...], *options: str, port: int = 0, edge: str = TEST_EDGE) -> Iterator[Process]:
    """A server process that is ready; killed at the end if it still runs."""
    with launched(Process(models, list(options), port=port, edge=edge)) as server:
        server.ready()
        yield server


@contextlib.contextmanager
def processes(models: Path, *options: str, count: int) -> Iterator[list[Process]]:
    """Server processes with the same options, which start at the same time."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(launched(Process(models, list(options)))) for _ in range(count)]
        for server in servers:
            server.ready()
        yield servers


@contextlib.contextmanager
def launched(server: Process) -> Iterator[Process]:
    """A server process that starts, or fails to; killed at the end if it still runs."""
    server.launch()
    try:
        yield server
    finally:
        server.kill()


async def serves_on(channel: Any) -> None:
    """A server goes on: a new session of "gru" is opened and stepped."""
    async with Speaker(channel, "gru") as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, {"x": np.ones((3, 2), np.float32)})
