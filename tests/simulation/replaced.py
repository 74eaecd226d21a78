"""What the simulation replaces in the shipped modules, name by name; all else runs as it is shipped.

A test looks through all modules of client and server for real clocks and draws: one that is neither in `REPLACED` nor
in `KEPT` is a failure. So a room that begins to read a clock of its own is entered here, or given it from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import random
import secrets
import time
import uuid
from collections.abc import Iterator
from typing import Any, Final

from tests.simulation.loop import RUNNING, Loop, Process

BEGAN: Final = 1_700_000_000.0
"""Unix time at the beginning."""

CLOCKS: Final = (
    "statestream.aio.link.time",
    "statestream.aio.wakeup.time",
    "statestream.aio.writing.time",
    "statestream.aio.calling.time",
    "statestream.aio.copying.time",
    "statestream.shards.time",
    "statestream_server.edges.grpc.chain.monotonic",
    "statestream_server.edges.grpc.outbox.monotonic",
    "statestream_server.edges.grpc.readers.monotonic",
    "statestream_server.edges.oip.inference.time",
    "statestream_server.edges.oip.sequences.time",
    "statestream_server.engine.alone.time",
    "statestream_server.engine.batch.time",
    "statestream_server.engine.courtesy.time",
    "statestream_server.engine.engine.time",
    "statestream_server.engine.queues.time",
    "statestream_server.engine.predictions.time",
    "statestream_server.housekeeping.time",
    "statestream_server.server.time",
    "statestream_server.sessions.checkpointer.time",
    "statestream_server.sessions.lease.time",
)
DRAWS: Final = (
    "statestream.arguments.uuid",
    "statestream.forecasts.secrets",
    "statestream.shards.os",
    "statestream.shards.uuid",
    "statestream.texts.secrets",
    "statestream_server.server.secrets",
    "statestream_server.server.uuid",
)
NETWORK: Final = ("grpc.aio.insecure_channel", "grpc.aio.server")
STORE: Final = ("statestream_server.app.open_store",)
FILES: Final = ("statestream_server.models.proof.loading.load",)
"""The models folder is read once for all servers, and its file tried once, by the tests of loading."""
DEFAULTS: Final = ("statestream.backoff.Backoff.__init__",)
"""A default that is a draw: how long a client waits before it connects again."""
REPLACED: Final = (*CLOCKS, *DRAWS, *NETWORK, *STORE, *FILES, *DEFAULTS)


def _process() -> Process:
    return RUNNING.get()


class Clock:
    """In place of the module `time`, for code that runs on the loop: clocks of the process that asks."""

    CLOCK_BOOTTIME = 7

    def monotonic(self) -> float:
        """Seconds on a clock that nobody sets and that stands while the machine sleeps."""
        return _process().loop.time()

    def clock_gettime(self, _clock: int) -> float:
        """The same, with the time that the machine slept."""
        process = _process()
        return process.loop.time() + process.slept

    def time(self) -> float:
        """Unix time, as far as the process knows it."""
        process = _process()
        return BEGAN + process.loop.time() + process.ahead

    def time_ns(self) -> int:
        """The same, in nanoseconds."""
        return int(self.time() * 1e9)

    def perf_counter(self) -> float:
        """A clock for measuring: what is measured takes some time, seldom much."""
        loop = _process().loop
        loop.spent += loop.draw.choice((1e-5, 1e-5, 1e-4, 1e-4, 6e-3))
        return loop.time() + loop.spent

    thread_time = perf_counter


class Draws:
    """In place of `os`, `uuid` and `secrets`: drawn by the seed."""

    @staticmethod
    def urandom(count: int) -> bytes:
        """Random bytes."""
        return _process().loop.own.randbytes(count)

    def uuid4(self) -> uuid.UUID:
        """A random id."""
        return uuid.UUID(bytes=self.urandom(16), version=4)

    def randbits(self, count: int) -> int:
        """A random number of so many bits."""
        return _process().loop.own.getrandbits(count)

    def token_hex(self, count: int) -> str:
        """Random hex digits."""
        return self.urandom(count).hex()


def names() -> dict[str, Any]:
    """What stands in for each name but for those that depend on a run."""
    clock, draws = Clock(), Draws()
    found: dict[str, Any] = {name: clock.monotonic if name.endswith("monotonic") else clock for name in CLOCKS}
    return found | dict.fromkeys(DRAWS, draws)


@contextlib.contextmanager
def replacing(stand_ins: dict[str, Any]) -> Iterator[None]:
    """While this is entered the names mean what stands in for them."""
    before = list[tuple[Any, str, Any]]()
    try:
        for name, value in stand_ins.items():
            owner, _, attribute = name.rpartition(".")
            where = resolve(owner)
            before.append((where, attribute, inspect.getattr_static(where, attribute)))
            setattr(where, attribute, value)
        yield
    finally:
        for where, attribute, value in reversed(before):
            setattr(where, attribute, value)


def resolve(name: str) -> Any:
    """The module, or the class in one, of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        owner, _, attribute = name.rpartition(".")
        return getattr(resolve(owner), attribute)


def drawn(backoff_init: Any) -> Any:
    """`Backoff.__init__` with draws of the loop where it has none given."""

    def __init__(self: Any, addresses: tuple[str, ...], most: float = 1.0, draw: Any = None) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        backoff_init(self, addresses, most, draw or loop.own.random)

    return __init__


REAL: Final = (
    time,
    random,
    secrets,
    uuid,
    time.clock_gettime,
    time.monotonic,
    time.perf_counter,
    time.time,
    time.time_ns,
)
"""Clocks and draws that no schedule may depend on."""

KEPT: Final = {
    "statestream.backoff.random": "a default, see DEFAULTS",
    "statestream.progress.time": "no caller of the simulation asks for progress",
    "statestream.latest.time": "no caller of the simulation has live steps that may be dropped",
    "statestream_server.edges.http.oip.monotonic": "simulated servers have no HTTP port",
    "statestream_server.refusals.time": "when somebody was refused, for the console: nothing goes by it",
    "statestream_server.access.commands.time": "no servers, but those who make tokens",
    "statestream_server.access.grants.time": "the simulated servers ask for no tokens",
    "statestream_server.access.tokens.secrets": "as above",
    "statestream_server.models.files.aliases.time": "the simulated servers set no aliases",
    "statestream_server.models.proof.proof.time": "files are tried before, see FILES",
    "statestream_server.models.proof.sharing.time": "as above",
    "statestream_server.models.proof.trials.time": "as above",
    "statestream_server.models.proof.warming.time": "as above",
    "statestream_server.quarantine.quarantine.time": "a simulated server has no folder for it, and notes nothing",
    "statestream_server.quarantine.recorder.secrets": "as above",
    "statestream_server.stores.memory.time": "when records were used: later than all virtual time, so none expires",
    "statestream_server.stores.memory.uuid": "the store's generation: it is compared, and never changes",
    "statestream_server.stores.redis.time": "not the store that is simulated",
    "statestream_server.stores.redis.uuid": "as above",
    "statestream_server.stores.sqlite.time": "as above",
    "statestream_server.stores.sqlite_tables.uuid": "as above",
    "statestream_server.edges.http.pages.time": "no HTTP port is open",
    "statestream_server.signals.time": "no simulated server hears a signal",
    "statestream_server.logs.time": "folds what the process writes, which tests catch before it",
    "statestream_server.tracing.time": "nothing is traced",
    "statestream_server.models.proof.kept.secrets": "files are tried before, see FILES",
    "statestream_server.models.proof.kept.time": "as above",
    "statestream_server.reloading.time": "nobody watches the models there, see Settings.watch",
    "statestream_server.stores.redis_upkeep.uuid": "not the store that is simulated",
    "statestream_server.stores.sqlite_upkeep.uuid": "as above",
    "statestream_server.upkeep.copying.time": "a command, beside servers",
    "statestream.owned.time": "a server in a child process, which no simulated one is",
    "statestream_server.beside.time": "as above",
}
"""Where they are reached all the same, and why no schedule depends on it."""
