"""Faults as small objects: each strikes a cluster while it works, and mends what it broke before it returns."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tests.chaos.cluster import Cluster, Replica
from tests.chaos.workload import Workload


@dataclass(frozen=True)
class Mark:
    """That something was broken: when, by time.monotonic, what, and at which address."""

    at: float
    what: str
    address: str = ""


@dataclass
class Scene:
    """Where faults strike."""

    cluster: Cluster
    load: Workload
    draw: random.Random
    marks: list[Mark] = field(default_factory=list)

    def mark(self, what: str, address: str = "") -> None:
        """Notes a fault."""
        self.marks.append(Mark(time.monotonic(), what, address))

    def victim(self) -> Replica:
        """A ready replica, at random, of those that have clients."""
        now = time.monotonic()
        used = {caller.where(now) for caller in self.load.callers}
        ready = self.cluster.ready()
        return self.draw.choice([replica for replica in ready if replica.address in used] or ready)


class Fault(Protocol):
    """Something that goes wrong and is mended again."""

    async def strike(self, scene: Scene) -> None:
        """Breaks something and mends it."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a random replica, and a new process in its place.

    Attributes:
        alone: Whether it may strike the only replica that is ready.
    """

    alone: bool = False

    async def strike(self, scene: Scene) -> None:
        assert self.alone or len(scene.cluster.ready()) > 1, "no other replica is ready"
        replica = scene.victim()
        scene.mark("kill", replica.address)
        await replica.kill()
        await replica.start()


@dataclass(frozen=True)
class Sleep:
    """SIGSTOP to a random replica, SIGCONT after some seconds."""

    seconds: float

    async def strike(self, scene: Scene) -> None:
        replica = scene.victim()
        scene.mark("stop", replica.address)
        replica.stop()
        await asyncio.sleep(self.seconds)
        replica.wake()


@dataclass(frozen=True)
class Drain:
    """SIGTERM to a random replica, and a new process in its place once it has left."""

    async def strike(self, scene: Scene) -> None:
        replica = scene.victim()
        scene.mark("drain", replica.address)
        status = await replica.drain()
        assert status == 0, f"a drained server ended with {status}:\n{replica.process.output}"
        await replica.start()


@dataclass(frozen=True)
class RedisOutage:
    """Redis is gone for some seconds; it comes back with its append-only file."""

    seconds: float

    async def strike(self, scene: Scene) -> None:
        scene.mark("redis down")
        await asyncio.to_thread(scene.cluster.redis.stop)
        await asyncio.sleep(self.seconds)
        await asyncio.to_thread(scene.cluster.redis.start)


@dataclass(frozen=True)
class RedisFlush:
    """FLUSHALL: Redis forgets everything while the owners live."""

    async def strike(self, scene: Scene) -> None:
        scene.mark("redis flushed")
        await asyncio.to_thread(scene.cluster.redis.flush)


async def schedule(scene: Scene, faults: Sequence[Fault], count: int) -> None:
    """Strikes `count` faults, each drawn from `faults`; mostly after every session has gone on, at times at once."""
    for _ in range(count):
        await scene.draw.choice(faults).strike(scene)
        if scene.draw.random() < 0.8:
            await scene.load.progress()
        await asyncio.sleep(scene.draw.random())
    await scene.load.progress()
