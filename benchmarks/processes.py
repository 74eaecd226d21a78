"""The servers that are measured, each a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def statestream(models: Path, folder: Path, *options: str) -> Iterator[Process]:
    """`statestream serve` with its default store (sqlite, in `folder`) and durability."""
    store = ["--store", f"sqlite:{folder / 'sessions.db'}"]
    if "--store" in options:
        store = []
    command = [str(Path(sys.executable).parent / "statestream"), "serve", str(models), *store, "--no-http", *options]
    with _process([*command, "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]) as process:
        yield process


@contextmanager
def echo() -> Iterator[Process]:
    """The bare echo."""
    with _process([sys.executable, "-m", "benchmarks.echo", "{port}"]) as process:
        yield process


@contextmanager
def naive(model: Path) -> Iterator[Process]:
    """The handler that one writes first."""
    with _process([sys.executable, "-m", "benchmarks.naive", "{port}", str(model)]) as process:
        yield process


@contextmanager
def _process(command: list[str]) -> Iterator[Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    filled = [part.replace("{port}", str(port)) for part in command]
    with subprocess.Popen(filled, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if "ready" not in server.stdout.readline():
                raise RuntimeError(f"{' '.join(filled)} did not start; its own message is above")
            yield Process(port, server.pid)
        finally:
            server.terminate()
