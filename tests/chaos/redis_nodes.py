"""A real Redis Cluster on the loopback interface, whose nodes can be killed, stopped and started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from tests.server.stores.redis_server import free_port, wait_until
from tests.services import require_binary

NODE_TIMEOUT = 1.0
"""Seconds after which the others take a silent node for failed."""


class Node:
    """One redis-server of the Cluster: every write is on its disk before it is answered."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        folder.mkdir()
        self._folder, self._options = folder, options
        self.port = free_port()
        self.client: Any = redis.Redis(port=self.port, socket_timeout=5)  # redis-py's own annotations have gaps
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        kept = ["--appendonly", "yes", "--appendfsync", "always"]
        member = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(round(NODE_TIMEOUT * 1000))]
        member += ["--logfile", "log"]
        self._process = subprocess.Popen(
            [require_binary("redis-server"), *place, *kept, *member, *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, "a node answers")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def sleep(self) -> None:
        """SIGSTOP: it hears nothing, its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """What it has written last."""
        return "\n".join((self._folder / "log").read_text().splitlines()[-40:])

    @property
    def role(self) -> str:
        """`master` or `slave`, in Redis' own words."""
        return str(self.client.info("replication")["role"])

    @property
    def whole(self) -> bool:
        """Whether it sees every slot served."""
        with contextlib.suppress(redis.RedisError):
            return "cluster_state:ok" in str(self.client.execute_command("CLUSTER", "INFO"))
        return False

    def _answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError):
            return bool(self.client.ping())
        return False


class RedisNodes:
    """Three primaries, each with as many replicas as asked for, joined by `redis-cli --cluster create`."""

    PRIMARIES = 3

    def __init__(self, folder: Path, *, replicas: int = 0, full_coverage: bool = True, wait: int = 0) -> None:
        self._cli = require_binary("redis-cli")
        self._replicas, self._wait = replicas, wait
        options = ["--cluster-require-full-coverage", "yes" if full_coverage else "no"]
        options += ["--repl-diskless-sync-delay", "0"]
        count = self.PRIMARIES * (1 + replicas)
        self.nodes = [Node(folder / f"node-{number}", options) for number in range(count)]

    @property
    def url(self) -> str:
        """Names one node; the store finds the others."""
        wait = f"?wait={self._wait}&wait_timeout_ms=2000" if self._wait else ""
        return f"redis://127.0.0.1:{self.nodes[0].port}/0{wait}"

    def start(self) -> None:
        """Starts the nodes, joins them and waits until each sees all slots served."""
        for node in self.nodes:
            node.start()
        create = [self._cli, "--cluster", "create", *(f"127.0.0.1:{node.port}" for node in self.nodes)]
        more = ["--cluster-replicas", str(self._replicas), "--cluster-yes"]
        made = subprocess.run([*create, *more], capture_output=True, text=True, timeout=60, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
        self.wait_whole()
        wait_until(self._followed, "every replica follows")

    @property
    def primaries(self) -> list[Node]:
        """Those that serve slots now."""
        return [node for node in self.nodes if node.role == "master"]

    def replica_of(self, primary: Node) -> Node:
        """One that follows it."""
        return next(
            node
            for node in self.nodes
            if node.role == "slave" and int(node.client.info("replication")["master_port"]) == primary.port
        )

    def wait_whole(self, nodes: Sequence[Node] | None = None) -> None:
        """Returns once these, or all, see every slot served."""
        for node in self.nodes if nodes is None else nodes:
            wait_until(lambda node=node: node.whole, "the Cluster serves all slots")  # type: ignore[misc]

    def succeed(self, heir: Node, primary: Node) -> Node:
        """Waits until a replica serves the slots of a primary that was killed.

        Where the others do not elect it in half a minute (seen once: Redis' affair, not ours), it is told to take them,
        as an operator would.
        """
        try:
            wait_until(lambda: heir.role == "master", "the replica takes over", 30)
        except AssertionError as error:
            print(f"{error}; it says:\n{heir.log}")
            heir.client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
            wait_until(lambda: heir.role == "master", "the replica takes over when it is told to", 30)
        self.wait_whole([node for node in self.nodes if node is not primary])
        return heir

    def close(self) -> None:
        """Ends all."""
        for node in self.nodes:
            with contextlib.suppress(AssertionError, ProcessLookupError):
                node.wake()
            node.kill()
            node.client.close()

    def _followed(self) -> bool:
        found = [node.client.info("replication") for node in self.nodes]
        up = sum(one.get("master_link_status") == "up" for one in found)
        return up == self.PRIMARIES * self._replicas
