"""Faults as small objects: each strikes a cluster while it works, and mends what it broke before it returns."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tests.chaos.cluster import Cluster, Replica
from tests.chaos.proxy import Proxy
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
    proxies: list[Proxy] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def mark(self, what: str, address: str = "") -> None:
        """Notes a fault."""
        self.marks.append(Mark(time.monotonic(), what, address))

    def victim(self) -> Replica:
        """A ready replica, at random, of those that have clients."""
        now = time.monotonic()
        used = {caller.where(now) for caller in self.load.callers}
        used |= {proxy.target for proxy in self.proxies if proxy.address in used}
        ready = self.cluster.ready()
        return self.draw.choice([replica for replica in ready if replica.address in used] or ready)

    def line(self) -> Proxy:
        """A proxy, at random, of those that have clients."""
        now = time.monotonic()
        used = {caller.where(now) for caller in self.load.callers}
        return self.draw.choice([proxy for proxy in self.proxies if proxy.address in used] or self.proxies)


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
    """FLUSHALL: Redis forgets everything while the owners live, and they write it down again."""

    async def strike(self, scene: Scene) -> None:
        scene.mark("redis flushed")
        await asyncio.to_thread(scene.cluster.redis.flush)
        await scene.load.saved()


@dataclass(frozen=True)
class Cut:
    """Connections are reset; for some seconds no new ones are taken."""

    seconds: float = 0.0

    async def strike(self, scene: Scene) -> None:
        line = scene.line()
        scene.mark("cut", line.address)
        line.refusing = True
        line.cut()
        await asyncio.sleep(self.seconds)
        line.refusing = False


@dataclass(frozen=True)
class LoseReplies:
    """Requests arrive and are applied, their answers are lost; then the connections are reset."""

    seconds: float = 0.3

    async def strike(self, scene: Scene) -> None:
        line = scene.line()
        scene.mark("replies lost", line.address)
        line.lose_replies()
        with contextlib.suppress(TimeoutError):  # nobody may have asked for anything on this line
            await asyncio.wait_for(line.lost.wait(), 5)
        await asyncio.sleep(self.seconds)
        line.losing = False
        line.cut()


@dataclass(frozen=True)
class Stall:
    """Half-open connections: nothing passes for some seconds; what was held up arrives late."""

    seconds: float

    async def strike(self, scene: Scene) -> None:
        line = scene.line()
        scene.mark("stall", line.address)
        line.stall()
        await asyncio.sleep(self.seconds)
        line.flow()


@dataclass(frozen=True)
class Delay:
    """Every piece is held up for a moment, each way."""

    seconds: float = 0.05
    lasting: float = 1.0

    async def strike(self, scene: Scene) -> None:
        line = scene.line()
        scene.mark("delay", line.address)
        line.delay = self.seconds
        await asyncio.sleep(self.lasting)
        line.delay = 0.0


@dataclass(frozen=True)
class Move:
    """Some sessions move to another version of the model, up or down, and go on.

    Attributes:
        versions: How many versions there are.
        share: How many of all sessions.
    """

    versions: int = 2
    share: float = 0.3

    async def strike(self, scene: Scene) -> None:
        idle = [track for track in scene.load.tracks if track.number not in scene.load.moving]
        moving = scene.draw.sample(idle, round(self.share * len(idle)))
        others = {track.number: [v for v in range(1, self.versions + 1) if v != track.version] for track in moving}
        scene.mark("move")
        await scene.load.move({number: scene.draw.choice(versions) for number, versions in others.items()})


@dataclass(frozen=True)
class Both:
    """Two faults at once."""

    one: Fault
    other: Fault

    async def strike(self, scene: Scene) -> None:
        await asyncio.gather(self.one.strike(scene), self.other.strike(scene))


async def schedule(scene: Scene, faults: Sequence[Fault], count: int, *, beside: Sequence[Fault] = ()) -> None:
    """Strikes `count` faults, each drawn from `faults`, mostly after every session has gone on, at times at once.

    Now and then one drawn from `beside` strikes at the same time; not beside a flush, after which only the
    owners know their sessions: they must not be driven away from them then.
    """
    draw = scene.draw
    for _ in range(count):
        together = [draw.choice(faults)]
        if beside and draw.random() < 0.3 and not isinstance(together[0], RedisFlush):
            together.append(draw.choice(beside))
        await asyncio.gather(*(fault.strike(scene) for fault in together))
        if draw.random() < 0.8:
            await scene.load.progress()
        await asyncio.sleep(draw.random())
    await scene.load.progress()
