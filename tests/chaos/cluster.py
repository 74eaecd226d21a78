"""What is broken on purpose: replicas of the server and a store, as processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tests.chaos.redis_nodes import RedisNodes
from tests.server.stores.redis_server import free_port
from tests.services import require_binary
from tests.support.serving import TEST_EDGE, Process


@dataclass
class Replica:
    """One server process on a fixed port.

    Attributes:
        ready: Whether it answers, as far as the test knows.
        killed_at: When it was killed or asked to leave, by time.monotonic.
    """

    process: Process
    ready: bool = False
    killed_at: list[float] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.process.address

    async def start(self) -> None:
        """Starts it, on the same port as before, and waits until it is ready."""
        await asyncio.to_thread(self.process.start)
        self.ready = True

    async def kill(self) -> None:
        """SIGKILL."""
        self.ready = False
        self.killed_at.append(time.monotonic())
        await asyncio.to_thread(self.process.kill)

    def stop(self) -> None:
        """SIGSTOP: it sleeps, its connections stay open."""
        self.ready = False
        self.process.signal(signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT."""
        self.process.signal(signal.SIGCONT)
        self.ready = True

    async def drain(self) -> int:
        """SIGTERM; returns the exit status."""
        self.ready = False
        self.killed_at.append(time.monotonic())
        return await asyncio.to_thread(self.process.stop)


class RedisProcess:
    """A real redis-server that can be stopped and started; it keeps an append-only file, if asked to."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._binary = require_binary("redis-server")
        self._folder = folder
        self._durable = durable
        self.port = free_port()
        self.client = redis.Redis(port=self.port, socket_timeout=5)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        kept = ["--appendonly", "yes", "--appendfsync", "everysec"] if self._durable else ["--appendonly", "no"]
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        self._process = subprocess.Popen(
            [self._binary, *place, "--save", "", *kept],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
                return
            except (redis.ConnectionError, redis.TimeoutError):
                assert time.monotonic() < deadline, "redis-server did not answer within 20 s"
                time.sleep(0.02)

    def stop(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def flush(self) -> None:
        """FLUSHALL: everything in it is gone."""
        self.client.flushall()

    def close(self) -> None:
        """Ends it for good."""
        self.stop()
        self.client.close()


@dataclass
class Cluster:
    """Replicas over one store."""

    replicas: list[Replica]
    store: RedisProcess | RedisNodes | Path

    @property
    def addresses(self) -> list[str]:
        return [replica.address for replica in self.replicas]

    def at(self, address: str) -> Replica:
        """The replica that listens there."""
        return next(replica for replica in self.replicas if replica.address == address)

    def ready(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.ready]

    @property
    def redis(self) -> RedisProcess:
        assert isinstance(self.store, RedisProcess)
        return self.store

    @property
    def nodes(self) -> RedisNodes:
        assert isinstance(self.store, RedisNodes)
        return self.store


@contextlib.asynccontextmanager
async def cluster(
    models: Path,
    folder: Path,
    *options: str,
    replicas: int = 1,
    store: str | RedisNodes = "sqlite",
    durable_redis: bool = True,
    edge: str = TEST_EDGE,
) -> AsyncIterator[Cluster]:
    """Replicas that are ready, over a store of their own; `store` is "sqlite", "redis", "memory" or a Redis Cluster.

    `edge` is theirs, "" for the usual one.
    """
    backing: RedisProcess | RedisNodes | Path = folder / "sessions.sqlite"
    if isinstance(store, RedisNodes):
        backing, url = store, store.url
        await asyncio.to_thread(store.start)
    elif store != "redis":
        url = f"sqlite:{backing}" if store == "sqlite" else store
    else:
        backing = RedisProcess(folder, durable=durable_redis)
        await asyncio.to_thread(backing.start)
        url = backing.url
    made = Cluster(
        [Replica(Process(models, ["--store", url, *options], port=free_port(), edge=edge)) for _ in range(replicas)],
        backing,
    )
    started: list[Replica] = []
    try:
        for replica in made.replicas:
            started.append(replica)
            await replica.start()
        yield made
    finally:
        for replica in started:
            with contextlib.suppress(ProcessLookupError):
                replica.process.signal(signal.SIGCONT)
            await asyncio.to_thread(replica.process.kill)
        if not isinstance(backing, Path):
            backing.close()
