"""One schedule: its servers, clients and faults on one loop, and what the oracle found."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from statestream.backoff import Backoff
from statestream.contract import errors
from statestream_server import app
from statestream_server.settings import Settings
from tests.simulation import model, replaced
from tests.simulation.callers import Caller, Client, Unary
from tests.simulation.faults import Faults
from tests.simulation.loop import Loop, Process
from tests.simulation.network import Network
from tests.simulation.oracle import Oracle
from tests.simulation.plan import HEALED, RETRY, Calls, Operation, Plan
from tests.simulation.store import Shelf, Store

PATIENCE = 5 * RETRY
"""Seconds that callers may take once nothing fails any more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a schedule.

    Attributes:
        violations: Promises that were broken.
        digest: Of all that happened.
        answered: Steps that were answered.
        callbacks: How many ran.
        seconds: Of virtual time.
        log: What happened, where it was asked for.
    """

    violations: tuple[str, ...]
    digest: int
    answered: int
    callbacks: int
    seconds: float
    log: tuple[str, ...]


class Replica:
    """A server's place: one process after the other."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._lives = 0
        self._outage: int | None = None
        self.ahead = 0.0
        self.address = f"127.0.0.1:{8001 + number}"
        self.start()

    def start(self) -> None:
        """A process begins, where none runs."""
        if self._lives and self.process.alive:
            return
        self._lives += 1
        self.process: Process = self._world.loop.process(f"s{self._number}.{self._lives}")
        self.process.ahead = self.ahead
        self.process.on_death.append(self._died)
        self._stop = asyncio.Event()
        self.main = self.process.create(self._main())

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()

    def _died(self) -> None:
        # Until the next one is ready, which takes as long as the store lets it.
        self._outage = self._world.oracle.outage(self._world.loop.time())
        self._world.network.servers.pop(self.address, None)
        self._world.network.lost(self.process)

    @property
    def is_leaving(self) -> bool:
        """Whether it was asked to leave and is still there."""
        return self._stop.is_set() and self.process.alive

    async def leave(self) -> None:
        """SIGTERM; returns when it is gone."""
        process = self.process
        self._stop.set()
        while process.alive:  # noqa: ASYNC110 (time is virtual)
            await asyncio.sleep(0.05)

    async def _main(self) -> None:
        world = self._world
        settings = Settings(
            models=(world.models,),
            port=8001 + self._number,
            http_port=None,
            reuse_port=True,  # The port is simulated: it is nobody's here, and may be somebody's on this machine.
            durability=world.plan.durability,
            checkpoint_interval=world.plan.interval,
            device="cpu",
            threads=1,
        )
        try:
            async with app.running(settings) as running:
                world.loop.trace("ready", self.process.name)
                if self._outage is not None:
                    world.oracle.over(self._outage, world.loop.time())
                await app._first(self._stop.wait(), running.failed())
        except Exception as error:
            world.oracle.violate(f"the server {self.process.name} ended: {error!r}")
        finally:
            self.process.kill()


class World:
    """Everything of one schedule."""

    def __init__(self, plan: Plan, loop: Loop, models: Path) -> None:
        self.plan, self.loop, self.models = plan, loop, models
        self.oracle = Oracle(plan)
        self.network = Network(loop)
        self.shelf = Shelf(loop)
        self.shelf.slow = plan.slow_store
        self.replicas = list[Replica]()
        self.clients: dict[int, Client] = {}

    async def run(self) -> None:
        """Runs the schedule, heals everything, and looks at what is left."""
        plan, loop, oracle = self.plan, self.loop, self.oracle
        self.replicas += [Replica(self, number) for number in range(plan.servers)]
        callers = [self._caller(number, calls) for number, calls in enumerate(plan.callers)]
        for weather in self.network.weather.values():
            weather.slow = plan.slow_network
        faults = Faults(self)
        failing = [asyncio.ensure_future(faults.run(fault)) for fault in plan.faults]
        running = {caller: caller.client.process.create(caller.run(), caller.name) for caller in callers}
        while loop.time() < HEALED and any(_lives(caller, task) for caller, task in running.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.25)
        for task in failing:
            task.cancel()
        await asyncio.wait([*failing, asyncio.ensure_future(asyncio.sleep(0))])
        for task in failing:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception() or AssertionError
        faults.heal()
        for replica in self.replicas:
            replica.process.doomed = None
            if replica.is_leaving:
                await replica.leave()
            replica.start()
        oracle.healed = loop.time()
        await self._all(running, "")
        living = [caller for caller in callers if caller.client.process.alive]
        await self._all({caller: caller.client.process.create(caller.finish()) for caller in living}, "at the end")
        last = self._client(90)
        probe = Probe(last)
        await self._all({probe: last.process.create(probe.run())}, "at the very end")

    def forget(self) -> None:
        """Lets the clients go: what ends one that nobody has any more would keep the whole world in memory."""
        for client in self.clients.values():
            if client.ready.done() and not client.ready.cancelled():
                client.ready.result()._abandoning.detach()

    async def _all(self, running: dict[Caller, asyncio.Task[None]], when: str) -> None:
        until = self.loop.time() + PATIENCE
        while any(_lives(caller, task) for caller, task in running.items()):
            if self.loop.time() > until:
                for caller, task in running.items():
                    if _lives(caller, task):
                        asked = caller.asked
                        what = f"{asked.what} of {asked.session} since {asked.began:.3f}" if asked else caller.name
                        self.oracle.violate(f"was never answered {when}: {what}")
                return
            await asyncio.sleep(0.25)
        for caller, task in running.items():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                self.oracle.violate(f"{caller.name} ended with {error!r}")

    def _client(self, number: int) -> Client:
        if number not in self.clients:
            addresses = [replica.address for replica in self.replicas]
            turn = number % len(addresses)
            client = self.clients[number] = Client(
                self.loop.process(f"c{number}"), ",".join(addresses[turn:] + addresses[:turn]), self.oracle
            )
            client.process.ahead = self.loop.own.choice((-2.0, -0.001, 0.001, 0.5, 2.0)) * self.loop.own.random()
            client.process.create(client.connect())
        return self.clients[number]

    def _caller(self, number: int, calls: Calls) -> Caller:
        if not calls.unary:
            return Caller(number, calls, self._client(calls.client))
        client = Client(self.loop.process(f"u{number}"), "", self.oracle)
        return Unary(number, calls, client, self.network, [replica.address for replica in self.replicas])


class Probe(Caller):
    """The last caller: takes every session over, and steps it once."""

    def __init__(self, client: Client) -> None:
        super().__init__(90, Calls(90, ()), client)

    async def run(self) -> None:
        """Looks at every session."""
        self._aio = await asyncio.shield(self.client.ready)
        for session in [*self.oracle.sessions]:
            await self.perform("the last step", Operation("step", 0, 0), self._probe, session)
        await self._aio.close()

    async def _probe(self, operation: Operation, session: str) -> None:
        known = self.oracle.known(session)
        try:
            found = await self._session(session, "resume" if known.starts else "either")
        except errors.SessionNotFound:
            if known.sure:
                self.oracle.violate(f"{session} is gone; {list(known.sure)} was safe")
            return
        await self._step(session, found, 1)


def _lives(caller: Caller, task: asyncio.Task[None]) -> bool:
    return not task.done() and caller.client.process.alive


class _Told(logging.Handler):
    """What servers say went wrong in a way that nobody expected."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not text.startswith(_EXPECTED):
            self.texts.append(f"{text} {record.exc_info[1]!r}" if record.exc_info else text)


_EXPECTED = ("the store cannot be", "leaving with sessions unsaved", "leaving after")


@cache
def models() -> Path:
    """The models folder of all servers of this process."""
    folder = tempfile.TemporaryDirectory(prefix="statestream-simulation-")
    _FOLDERS.append(folder)
    return model.write(Path(folder.name))


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def simulate(plan: Plan, *, log: bool = False) -> Outcome:
    """Runs a plan; the same plan always ends alike."""
    folder, told = models(), _Told()
    lines: list[str] | None = [] if log else None
    loop = Loop(plan.seed, jitter=plan.jitter, stalls=plan.stalls, log=lines)
    gc.disable()
    logger, client_logger = logging.getLogger("statestream_server"), logging.getLogger("statestream")
    levels = logger.level, client_logger.level, logger.propagate
    logger.addHandler(told)
    logger.setLevel(logging.ERROR)
    client_logger.setLevel(logging.CRITICAL)
    logger.propagate = False
    try:
        with loop.everywhere.context.run(_entered, loop, plan, folder) as world:
            try:
                loop.everywhere.context.run(_complete, loop, world)
            except RuntimeError as error:
                world.oracle.violate(f"the schedule stood still: {error}")
            world.forget()
            oracle = world.oracle
            found = tuple(dict.fromkeys([*oracle.violations, *told.texts, *loop.errors]))
            loop.trace("end", oracle.answered)
            return Outcome(found, loop.digest, oracle.answered, loop.callbacks, loop.time(), tuple(lines or ()))
    finally:
        loop.end()
        logger.removeHandler(told)
        logger.setLevel(levels[0])
        client_logger.setLevel(levels[1])
        logger.propagate = levels[2]
        gc.enable()


def _complete(loop: Loop, world: World) -> None:
    loop.run_until_complete(world.run())


@contextlib.contextmanager
def _entered(loop: Loop, plan: Plan, folder: Path) -> Iterator[World]:
    world = World(plan, loop, folder)
    with replaced.replacing(stand_ins(world)):
        yield world


def stand_ins(world: World) -> dict[str, object]:
    """What stands in for each name of `replaced.REPLACED`."""
    return replaced.names() | {
        "grpc.aio.insecure_channel": world.network.channel,
        "grpc.aio.server": world.network.server,
        "statestream_server.app.open_store": lambda _url: Store(world.shelf),
        "statestream_server.models.proof.loading.load": model.load,
        "statestream.backoff.Backoff.__init__": replaced.drawn(Backoff.__init__),
    }
