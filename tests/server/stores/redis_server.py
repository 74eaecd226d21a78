"""A real redis-server on a free port of the loopback interface, for one test module."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.services import require_binary


class Server(NamedTuple):
    """A running redis-server."""

    port: int
    process: subprocess.Popen[bytes]
    client: Any  # redis-py's own annotations have gaps

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def patient(self) -> str:
        """The URL for tests of what a store does, not of when it gives up: a busy machine answers late."""
        return f"{self.url}?timeout_ms=20000"


def free_port() -> int:
    """A port that nobody listens on; below 55536, so that the bus of a Cluster fits above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_536:
            return port


@contextmanager
def redis_server(folder: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """Starts redis-server with the given options, waits until it answers, and ends it."""
    binary = require_binary("redis-server")
    port = port or free_port()
    fixed = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([binary, *fixed, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = redis.Redis(port=port, socket_timeout=10, retry=Retry(NoBackoff(), 0))
    try:
        wait_until(lambda: process.poll() is None and _answers(client), "redis-server answers")
        yield Server(port, process, client)
    finally:
        client.close()
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Asks again until the condition, of another process, holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s until {what}"
        time.sleep(0.005)


def _answers(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.AuthenticationError:
        return True
    except redis.ConnectionError:
        return False
    return True
