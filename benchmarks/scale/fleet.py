"""The fleet: replicas, Redis shards and streams of sessions as a discrete-event simulation on a virtual clock.

The unit that moves is a *stream*: the sessions of one caller, `size` of them, which all step once each `period`; what
fell due since its last answer goes as one frame, as the client does it. A replica is a queue with one processor, so is
a shard. Every `save_interval` a replica saves the streams that stepped; a stream whose replica is killed finds another
one after `reconnect` seconds, where its sessions are claimed, and the steps since their last save are run again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from statestream_server.stores.redis_keys import BUCKETS

Process = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True)
class Costs:
    """What was measured: processor seconds and seconds.

    Attributes:
        frame: Of a replica, for each frame.
        step: Of a replica, for each step in a frame.
        record: Of a replica, for each record that is saved.
        call: Of a replica, for each script call in which records are saved.
        claim: Of a replica, for each session that it takes over.
        shard_record: Of Redis, for each record that is saved.
        shard_call: Of Redis, for each of these calls.
        shard_claim: Of Redis, for each session that is taken over.
        client_frame: Of the caller, for each frame; it counts only where all share one machine.
        client_step: Of the caller, for each step in a frame.
        client_claim: Of the caller, for each session that it opens elsewhere.
        reconnect: Seconds from a kill until the first session is claimed elsewhere.
        round_trip: Seconds of a frame on its way, there and back, where nobody waits.
    """

    frame: float
    step: float
    record: float
    call: float
    claim: float
    shard_record: float
    shard_call: float
    shard_claim: float
    client_frame: float = 0.0
    client_step: float = 0.0
    client_claim: float = 0.0
    reconnect: float = 0.1
    round_trip: float = 0.0005


def calls(records: float) -> float:
    """How many script calls write so many records at once: as many as there are buckets among them."""
    return BUCKETS * -float(np.expm1(-records / BUCKETS))


@dataclass(frozen=True)
class Setting:
    """What is asked.

    Attributes:
        replicas: How many serve.
        shards: How many Redis primaries the records are spread over.
        streams: How many streams there are, and `size` sessions in each.
        size: Sessions of a stream.
        period: Seconds between two steps of a session.
        seconds: For how long steps fall due; what waits then is still served.
        kill_at: When replicas are killed.
        killed: How many of them; they do not come back.
        shards_down: How many shards stand still from `kill_at` on, for `failover` seconds.
        failover: Seconds until a shard's replica serves.
        save_interval: Seconds between two saves of a session that steps.
        notice: Seconds more until callers notice: none where connections are reset, some where a machine falls silent.
        cores: Processors that replicas, shards and callers share; 0 where each has one of its own.
        seed: Of phases and choices.
    """

    replicas: int
    shards: int
    streams: int
    size: int
    period: float = 1.0
    seconds: float = 12.0
    kill_at: float = 5.0
    killed: int = 0
    shards_down: int = 0
    failover: float = 0.0
    save_interval: float = 1.0
    notice: float = 0.0
    cores: int = 0
    seed: int = 0

    @property
    def sessions(self) -> int:
        """All of them."""
        return self.streams * self.size


@dataclass
class Server:
    """A replica or a shard: one processor with a queue.

    Attributes:
        turn: Who is served.
        busy: Seconds that it worked.
        killed_at: When it was killed; None while it lives.
        back_at: Until when it stands still.
        streams: Those that a replica serves, by number.
    """

    turn: simpy.Resource
    busy: float = 0.0
    killed_at: float | None = None
    back_at: float = 0.0
    streams: dict[int, Stream] = field(default_factory=dict)


@dataclass
class Stream:
    """The sessions of one caller."""

    number: int
    home: Server
    waiting: deque[float] = field(default_factory=deque)
    serving: bool = False
    unsaved: int = 0
    moving: simpy.Event | None = None
    victim: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it. Counts are steps.

    Attributes:
        arrived: Steps that fell due.
        served: Steps that were answered.
        queued: Steps that nobody answered until the end.
        due: When each frame's worth fell due.
        late: Seconds from due to answered, of each.
        stream: Whose it was.
        victims: Which of them belong to streams of a replica that was killed.
        in_system: The mean number of steps that waited or were run, over time.
        elapsed: Seconds until the last answer.
        replica_busy: The share of its time that each replica worked, until steps ceased to fall due.
        shard_busy: The same of each shard.
        setting: What was asked.
    """

    arrived: int
    served: int
    queued: int
    due: np.ndarray
    late: np.ndarray
    stream: np.ndarray
    victims: np.ndarray
    in_system: float
    elapsed: float
    replica_busy: np.ndarray
    shard_busy: np.ndarray
    setting: Setting

    @property
    def steady(self) -> np.ndarray:
        """How late answers are before anything is killed, the first seconds left out."""
        return self.late[(self.due > 1.5) & (self.due < self.setting.kill_at - self.setting.period)]

    @property
    def pauses(self) -> np.ndarray:
        """How late the latest answer around the kill is, of each stream that a killed replica served."""
        first = self.setting.kill_at
        chosen = self.victims & (self.due + self.late > first) & (self.due < first + self.setting.period)
        _, where = np.unique(self.stream[chosen], return_inverse=True)
        latest = np.zeros(where.max(initial=-1) + 1)
        np.maximum.at(latest, where, self.late[chosen])
        return latest

    @property
    def elsewhere(self) -> np.ndarray:
        """How late answers are from the kill on for everybody else."""
        found: np.ndarray = self.late[~self.victims & (self.due + self.late > self.setting.kill_at)]
        return found


class Fleet:
    """One run."""

    def __init__(self, costs: Costs, setting: Setting) -> None:
        self.costs, self.setting = costs, setting
        self.env = simpy.Environment()
        self.draw = random.Random(setting.seed)
        self._cores = simpy.Resource(self.env, setting.cores) if setting.cores else None
        self._caller = self._server()
        self.replicas = [self._server() for _ in range(setting.replicas)]
        self.shards = [self._server() for _ in range(setting.shards)]
        self.streams = [Stream(number, self.replicas[number % setting.replicas]) for number in range(setting.streams)]
        for stream in self.streams:
            stream.home.streams[stream.number] = stream
        self.arrived = self.served = 0
        self._found: list[tuple[float, float, int, bool]] = []
        self._area = self._changed = 0.0
        self._waiting = 0

    def run(self) -> Outcome:
        """Runs it until everything that fell due is answered, or four times `seconds` are over."""
        env, setting = self.env, self.setting
        for stream in self.streams:
            env.process(self._fall_due(stream))
        for replica in self.replicas:
            env.process(self._save(replica))
        if setting.killed or setting.shards_down:
            env.process(self._strike())
        env.run(until=setting.seconds)
        work = [np.asarray([one.busy for one in some]) / setting.seconds for some in (self.replicas, self.shards)]
        limit = 4 * setting.seconds
        while self._waiting and env.now < limit:
            env.run(until=min(limit, env.now + setting.period))
        self._count(0)
        found = np.asarray(self._found, np.float64).reshape(-1, 4)
        last = float((found[:, 0] + found[:, 1]).max(initial=0.0))
        return Outcome(
            self.arrived, self.served, self._waiting, found[:, 0], found[:, 1], found[:, 2], found[:, 3] > 0,
            self._area / max(last, 1e-9), last, work[0], work[1], setting,
        )  # fmt: skip

    def _server(self) -> Server:
        return Server(simpy.Resource(self.env, 1))

    def _count(self, change: int) -> None:
        """Notes that so many steps more wait, and for how long the others did."""
        self._area += self._waiting * (self.env.now - self._changed)
        self._changed = self.env.now
        self._waiting += change

    def _work(self, server: Server, seconds: float) -> Process:
        """Has a server work for some seconds; whether it lived to the end of it."""
        with server.turn.request() as turn:
            yield turn
            if server.back_at > self.env.now:
                yield self.env.timeout(server.back_at - self.env.now)
            if server.killed_at is not None:
                return False
            if self._cores is None:
                yield self.env.timeout(seconds)
            else:
                with self._cores.request() as core:
                    yield core
                    yield self.env.timeout(seconds)
            server.busy += seconds
        return server.killed_at is None

    def _fall_due(self, stream: Stream) -> Process:
        setting = self.setting
        yield self.env.timeout(self.draw.random() * setting.period)
        # What stepped since the last save when the run begins.
        stream.unsaved = self.draw.randint(0, max(1, round(setting.save_interval / setting.period)))
        while self.env.now < setting.seconds:
            stream.waiting.append(self.env.now)
            self._count(setting.size)
            self.arrived += setting.size
            if not stream.serving:
                stream.serving = True
                self.env.process(self._serve(stream))
            yield self.env.timeout(setting.period)

    def _serve(self, stream: Stream) -> Process:
        """Sends what waits, frame after frame, until nothing does."""
        costs, size = self.costs, self.setting.size
        while stream.waiting:
            if stream.moving is not None:
                yield stream.moving
            count, home = len(stream.waiting), stream.home
            if self._cores is not None:
                yield from self._work(self._caller, costs.client_frame + count * size * costs.client_step)
            if not (yield from self._work(home, costs.frame + count * size * costs.step)) or stream.home is not home:
                continue
            yield self.env.timeout(costs.round_trip)
            for _ in range(count):
                due = stream.waiting.popleft()
                self._found.append((due, self.env.now - due, stream.number, stream.victim))
            self._count(-count * size)
            self.served += count * size
            stream.unsaved += count
        stream.serving = False

    def _spread(self, seconds: float) -> Process:
        """Work on a stream's records: they lie in all shards; four, drawn anew each time, stand for these."""
        some = self.draw.sample(self.shards, min(4, len(self.shards)))
        yield self.env.all_of([self.env.process(self._work(shard, seconds / len(some))) for shard in some])

    def _save(self, replica: Server) -> Process:
        """Saves what stepped, all of it in one go each time."""
        costs, size, interval = self.costs, self.setting.size, self.setting.save_interval
        yield self.env.timeout(self.draw.random() * interval)
        while replica.killed_at is None:
            began = self.env.now
            going = [one for one in replica.streams.values() if one.unsaved]
            each = calls(size * len(going)) / max(1, len(going))
            for stream in going:
                if stream.home is replica and (yield from self._work(replica, size * costs.record + each * costs.call)):
                    seconds = size * costs.shard_record + each * costs.shard_call
                    self.env.process(self._saved(stream, replica, stream.unsaved, seconds))
            yield self.env.timeout(max(0.0, interval - (self.env.now - began)))

    def _saved(self, stream: Stream, replica: Server, frames: int, seconds: float) -> Process:
        yield from self._spread(seconds)
        if stream.home is replica:
            stream.unsaved = max(0, stream.unsaved - frames)

    def _strike(self) -> Process:
        setting = self.setting
        yield self.env.timeout(setting.kill_at)
        for shard in self.shards[: setting.shards_down]:
            shard.back_at = setting.kill_at + setting.failover
        dead = self.replicas[: setting.killed]
        for replica in dead:
            replica.killed_at = self.env.now
        for stream in [stream for replica in dead for stream in replica.streams.values()]:
            stream.victim, stream.moving = True, self.env.event()
            self.env.process(self._move(stream, stream.moving))

    def _move(self, stream: Stream, moved: simpy.Event) -> Process:
        """Takes the stream's sessions over elsewhere and runs again what was not saved."""
        costs, size = self.costs, self.setting.size
        yield self.env.timeout(costs.reconnect + self.setting.notice)
        if self._cores is not None:
            yield from self._work(self._caller, size * costs.client_claim)
        home = self.draw.choice([replica for replica in self.replicas if replica.killed_at is None])
        yield from self._spread(size * costs.shard_claim)
        yield from self._work(home, size * costs.claim)
        if stream.unsaved:
            yield from self._work(home, costs.frame + stream.unsaved * size * costs.step)
        stream.home, stream.moving = home, None
        home.streams[stream.number] = stream
        moved.succeed()


def simulate(costs: Costs, setting: Setting) -> Outcome:
    """Runs one setting."""
    return Fleet(costs, setting).run()


def quantile(values: Sequence[float] | np.ndarray, part: float) -> float:
    """A quantile, 0 of nothing."""
    return float(np.quantile(values, part)) if len(values) else 0.0
