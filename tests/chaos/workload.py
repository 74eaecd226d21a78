"""Sessions that step without pause through the public client, and a record of all that they were answered."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

import statestream
from tests.chaos.oracle import MODEL, Oracle, Track, inputs

RETRY_SECONDS = 120.0
"""How long callers put up with a cluster without a server; longer than any fault lasts."""


@dataclass
class Caller:
    """One client and where it is connected."""

    client: statestream.aio.Client
    addresses: list[str]
    moves: list[tuple[float, str]] = field(default_factory=list)

    def where(self, at: float) -> str:
        """The address that it was connected to at that time."""
        return next((address for time_, address in reversed(self.moves) if time_ <= at), self.addresses[0])


@dataclass
class Workload:
    """Sessions of some callers.

    Attributes:
        steps: Steps answered so far, of all sessions.
        moving: The sessions that are to move to another version, by number, and to which.
        think: Seconds for which a session rests after each operation.
    """

    seed: int
    callers: list[Caller]
    tracks: list[Track]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    sessions: list[statestream.aio.Session] = field(default_factory=list)
    moving: dict[int, int] = field(default_factory=dict)
    think: float = 0.0
    began: float = 0.0

    @property
    def steps(self) -> int:
        return sum(track.position for track in self.tracks)

    def caller(self, track: Track) -> Caller:
        """Whose session it is."""
        return self.callers[track.number % len(self.callers)]

    async def progress(self, seconds: float = 60.0) -> None:
        """Returns once every session was answered again.

        Raises:
            AssertionError: It took too long.
        """
        since = time.monotonic()
        late = list(self.tracks)
        while late:
            self._raise_failures()
            late = [track for track in late if not track.times or track.times[-1] <= since]
            if late and time.monotonic() - since > seconds:
                at = [f"{one.id} at {one.position} by {self.caller(one).where(time.monotonic())}" for one in late[:3]]
                raise AssertionError(f"seed {self.seed}: {len(late)} sessions stand still for {seconds} s: {at}")
            await asyncio.sleep(0.02)

    async def until(self, wanted: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Returns once something holds while the sessions step."""
        deadline = time.monotonic() + seconds
        while not wanted():
            self._raise_failures()
            assert time.monotonic() < deadline, f"seed {self.seed}: waited {seconds} s until {what}"
            await asyncio.sleep(0.02)

    async def saved(self, seconds: float = 60.0) -> None:
        """Returns once all that every caller has now is durable, as far as the callers are told."""
        wanted = [track.position for track in self.tracks]
        await self.until(
            lambda: all(one.durable_position >= least for one, least in zip(self.sessions, wanted, strict=True)),
            "everything is durable",
            seconds,
        )

    async def move(self, versions: Mapping[int, int]) -> None:
        """Has sessions, by number, move to other versions of the model; returns once all have."""
        self.moving |= versions
        await self.until(lambda: self.moving.keys().isdisjoint(versions), "all have moved to their versions")

    async def finish(self) -> None:
        """Lets every session end its operation and stop; raises what a session met."""
        self.stopping.set()
        for found in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found

    def _raise_failures(self) -> None:
        for task in self.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                task.result()


@contextlib.asynccontextmanager
async def workload(
    addresses: Sequence[str],
    *,
    seed: int,
    sessions: int,
    clients: int = 6,
    prefix: str = "s",
    settings: statestream.Settings | None = None,
    think: float = 0.0,
) -> AsyncIterator[Workload]:
    """Sessions that step until `finish` or the end of the block; client k connects to address k first.

    They begin with version 1. Client k has always the same route key, so a proxy spreads them alike in each run.
    """
    settings = settings or statestream.Settings(retry_timeout=RETRY_SECONDS, connect_timeout=30.0)
    load = Workload(seed, [], [Track(number, f"{prefix}-{number}") for number in range(sessions)], think=think)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(clients):
            turn = number % len(addresses)
            mine = [*addresses[turn:], *addresses[:turn]]
            moves: list[tuple[float, str]] = []

            def moved(address: str, moves: list[tuple[float, str]] = moves) -> None:
                moves.append((time.monotonic(), address))

            keyed = replace(settings, route_key=f"{prefix}-client-{number}")
            client = await stack.enter_async_context(
                statestream.aio.connect(",".join(mine), settings=keyed, on_reconnect=moved)
            )
            load.callers.append(Caller(client, mine, moves))
        load.sessions = await asyncio.gather(*(_open(load.caller(track).client, track) for track in load.tracks))
        load.began = time.monotonic()
        load.tasks = [
            asyncio.create_task(_drive(load, track, session), name=track.id)
            for track, session in zip(load.tracks, load.sessions, strict=True)
        ]
        try:
            yield load
            await load.finish()
        finally:
            for task in load.tasks:
                task.cancel()
            await asyncio.gather(*load.tasks, return_exceptions=True)


async def _open(client: statestream.aio.Client, track: Track) -> statestream.aio.Session:
    session = await client.session(MODEL, id=track.id, mode="create", version=track.version)
    assert session.position == 0
    return session


async def _moved(load: Workload, track: Track, session: statestream.aio.Session) -> statestream.aio.Session:
    """Moves a session to the version that it is to have; what it was answered so far, the old one has answered."""
    version = load.moving[track.number]
    # A step that a crash undid would be repeated by the new version.
    await _saved(session)
    await session.close()
    client = load.caller(track).client
    session = load.sessions[track.number] = await client.session(MODEL, id=track.id, mode="resume", upgrade=version)
    assert (session.position, session.version) == (track.position, version), (
        f"seed {load.seed}: {track.id} moved to version {session.version} at {session.position}; its caller asked for"
        f" version {version} and has {track.position} outputs"
    )
    track.versions.append((track.position, version))
    del load.moving[track.number]
    return session


async def _saved(session: statestream.aio.Session) -> None:
    while True:
        try:
            await session.flush()
        except statestream.StoreUnavailable:
            await asyncio.sleep(0.05)
        else:
            return


async def _drive(load: Workload, track: Track, session: statestream.aio.Session) -> None:
    """Steps one session: mostly one step at a time, now and then a chunk or a pipelined stream."""
    seed, draw = load.seed, random.Random(f"{load.seed}/{track.number}")
    while not load.stopping.is_set():
        if track.number in load.moving:
            session = await _moved(load, track, session)
        kind = draw.random()
        if kind < 0.7:
            x = inputs(seed, track.number, track.position, 1)
            track.took(await session.step(x[0]), time.monotonic())
        elif kind < 0.9:
            x = inputs(seed, track.number, track.position, draw.randint(2, 12))
            track.took(await session.step(x), time.monotonic())
        else:
            x = inputs(seed, track.number, track.position, 8)
            async for y in session.stream(list(x), ahead=4):
                track.took(y, time.monotonic())
        assert session.position == track.position, (
            f"seed {seed}: {track.id} is at {session.position}, its caller has {track.position} outputs"
        )
        if load.think:
            await asyncio.sleep(load.think)


@dataclass(frozen=True)
class Verdict:
    """What a run came to."""

    outputs: int
    lost: int
    repeated: int


async def verify(load: Workload, oracle: Oracle, addresses: Sequence[str]) -> Verdict:
    """Compares every output with the uninterrupted run, and every position on the servers with what was sent.

    A new client opens each session by its id, in the version that it moved to last, and steps once more: so the
    state on the server, too, is the one of the uninterrupted run.
    """
    outputs = oracle.check(load.tracks)
    settings = statestream.Settings(retry_timeout=RETRY_SECONDS, connect_timeout=30.0)
    for caller in load.callers:
        await caller.client.close()
    lost = repeated = 0
    async with statestream.aio.connect(",".join(addresses), settings=settings) as client:
        for version in sorted({track.version for track in load.tracks}):
            tracks = [track for track in load.tracks if track.version == version]
            ids = [track.id for track in tracks]
            pool = await client.sessions(MODEL, ids=ids, version=version, mode="resume")
            for track, position in zip(tracks, pool.positions.tolist(), strict=True):
                lost += max(0, track.position - position)
                repeated += max(0, position - track.position)
            assert not lost, f"seed {load.seed}: the servers know {lost} steps less than were answered"
            assert not repeated, f"seed {load.seed}: the servers applied {repeated} steps more than were sent"
            x = np.stack([inputs(load.seed, track.number, track.position, 1)[0] for track in tracks])
            for track, y in zip(tracks, await pool.step(x), strict=True):
                track.took(y, time.monotonic())
    oracle.check(load.tracks)
    return Verdict(outputs, lost, repeated)
