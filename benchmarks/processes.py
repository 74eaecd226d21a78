"""The servers that are measured, each a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Process:
    """A server that answers on a port of this machine."""

    port: int
    pid: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def rss(self) -> int:
        """Bytes of its memory that are resident."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Seconds of processor time that it used."""
        return _cpu_seconds(Path(f"/proc/{self.pid}/stat"))

    def busy_seconds(self) -> float:
        """The same to the nanosecond, by the scheduler's own account; of threads that have ended nothing is in it."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def loop_cpu_seconds(self) -> float:
        """Seconds of processor time that its main thread used, which is its event loop's."""
        return _cpu_seconds(Path(f"/proc/{self.pid}/task/{self.pid}/stat"))


def _cpu_seconds(stat: Path) -> float:
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def statestream(
    models: Path, folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """`statestream serve` with its default store (sqlite, in `folder`) and durability; more variables may be told."""
    with _process(["-m", "statestream.cli", *_serve(models, folder, *options)], environment or {}) as process:
        yield process


@contextmanager
def sampled(models: Path, folder: Path, samples: Path) -> Iterator[Process]:
    """The same with a sampler, which writes to the file `samples`."""
    with _process(["-m", "benchmarks.sampled", str(samples), *_serve(models, folder)]) as process:
        yield process


@contextmanager
def marked(models: Path, folder: Path, marks: Path, *options: str) -> Iterator[Process]:
    """The same with marks, which it writes to the file `marks` at its end."""
    with _process(["-m", "benchmarks.marked", str(marks), *_serve(models, folder, *options)]) as process:
        yield process


def _serve(models: Path, folder: Path, *options: str) -> list[str]:
    own = [] if "--store" in options else ["--store", f"sqlite:{folder / 'sessions.db'}"]
    http = [] if "--http-port" in options else ["--no-http"]
    where = ["--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]
    return ["serve", str(models), *own, *http, *where, *options]


@contextmanager
def echo() -> Iterator[Process]:
    """The bare echo."""
    with _process(["-m", "benchmarks.echo", "{port}"]) as process:
        yield process


@contextmanager
def naive(model: Path) -> Iterator[Process]:
    """The handler that one writes first."""
    with _process(["-m", "benchmarks.naive", "{port}", str(model)]) as process:
        yield process


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _process(command: list[str], environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    """Python with these arguments, {port} replaced by a free one."""
    port = free_port()
    filled = [sys.executable, *(part.replace("{port}", str(port)) for part in command)]
    variables = {**os.environ, **(environment or {})}
    with subprocess.Popen(filled, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=variables) as server:
        try:
            assert server.stdout is not None
            if "ready" not in server.stdout.readline():
                raise RuntimeError(f"{' '.join(filled)} did not start; its own message is above")
            yield Process(port, server.pid)
        finally:
            server.terminate()
