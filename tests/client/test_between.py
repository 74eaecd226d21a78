"""Between any two frames: what callers can do, cancelled at any moment, over streams and servers that fail."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from statestream import errors
from statestream.core import ControlTicket, Group, OpenTicket, State, StepTicket, StreamCore, Ticket
from statestream.v1 import inference_pb2 as pb
from tests.client.wire import Wire, make_core, notice
from tests.client.world import FEATURES, MODEL, World
from tests.support.searching import searched

IDS = "abcd"
MODES = [pb.OPEN_MODE_EITHER] * 4 + [pb.OPEN_MODE_CREATE, pb.OPEN_MODE_RESUME, pb.OPEN_MODE_REPLACE]
TOLD = (errors.AlreadyOpen, errors.SessionExists, errors.SessionNotFound, errors.SessionMoved, errors.Closed)


@dataclass
class Life:
    """A session under one handle, from an open or a reset to the next: its steps in order, and those given up."""

    steps: list[tuple[float, StepTicket]] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)

    def check(self) -> None:
        """Each answer follows from the one before: nothing twice, nothing left out, in the order of submission."""
        last: float | None = None
        unknown: list[float] = []
        for x, ticket in self.steps:
            if id(ticket) in self.cancelled:
                unknown.append(x)  # It was applied or not; what came of it nobody heard.
            elif ticket.error is None:
                y = float(ticket.value[-1, 0])
                if last is not None:
                    maybe = {sum(some) for n in range(len(unknown) + 1) for some in itertools.combinations(unknown, n)}
                    assert y - last - x in maybe, (last, unknown, x, y)
                last, unknown = y, []
            else:
                assert isinstance(ticket.error, TOLD), ticket.error


@dataclass
class Holder:
    """A caller who has, or asks for, one session."""

    ticket: OpenTicket
    gone: bool = False

    @property
    def handle(self) -> int:
        """What it has; -1 while it has nothing."""
        open_now = self.ticket.done and not self.gone and not self.ticket.errors and self.ticket.error is None
        return int(self.ticket.handles[0]) if open_now else -1


class Program:
    """All callers of one client, and another client that takes sessions from it."""

    def __init__(self, rng: random.Random, durability: pb.DurabilityMode) -> None:
        self.rng = rng
        world = World(durability)
        room = rng.choice([64 << 20, 2000])
        self.wire = Wire(world, make_core(keep_seconds=rng.choice([0.0, 1.0]), replay_buffer_bytes=room))
        self.rival = Wire(world, StreamCore(b"2" * 16, 5000))
        self.wire.connect()
        self.rival.connect()
        self.holders: list[Holder] = []
        self.lives: dict[int, Life] = {}
        self.ended: list[Life] = []
        self.waits: list[Ticket] = []

    def open(self) -> None:
        one = self.rng.choice(IDS)
        try:
            ticket = self.wire.core.open(Group(MODEL, 0, self.rng.random() < 0.2), [one], self.rng.choice(MODES))
        except errors.AlreadyOpen:
            return
        self.holders.append(Holder(ticket))

    def act(self) -> None:
        rng, core = self.rng, self.wire.core
        self.notice()
        having = [holder for holder in self.holders if holder.handle >= 0]
        action = rng.random()
        if action < 0.25 or not having:
            self.open()
        elif action < 0.3:
            holder = rng.choice(self.holders)  # While it is asked for, or as if its object was never made.
            if not holder.gone:
                core.cancel(holder.ticket)
                holder.gone = True
        elif action < 0.7:
            holder, x = rng.choice(having), float(rng.randrange(1, 9))
            step = self.wire.step(holder.handle, np.full((rng.randrange(1, 3), FEATURES), x))
            self.lives[holder.handle].steps.append((x * step.steps, step))
        elif action < 0.75:
            life = self.lives[rng.choice(having).handle]
            if life.steps and not life.steps[-1][1].done:
                core.cancel(life.steps[-1][1])
                life.cancelled.add(id(life.steps[-1][1]))
        elif action < 0.8:
            handle = rng.choice(having).handle
            self.waits.append(self.wire.reset(np.array([handle])))
            self.ended.append(self.lives[handle])
            self.lives[handle] = Life()
            if rng.random() < 0.3:
                core.cancel(self.waits.pop())
                self.lives[handle] = Life()  # It may have happened or not: nothing is compared over it.
        elif action < 0.86:
            ask = rng.choice([core.flush, core.settle])
            self.waits.append(ask(np.array([rng.choice(having).handle])))
            if rng.random() < 0.3:
                core.cancel(self.waits.pop())
        else:
            holder = rng.choice(having)
            self.waits.append(core.close(np.array([holder.handle]), delete=rng.random() < 0.3))
            holder.gone = True
            if rng.random() < 0.3:
                core.cancel(self.waits.pop())

    def notice(self) -> None:
        """Sessions that are there now, under which handle."""
        having = {holder.handle for holder in self.holders} - {-1}
        for handle in self.lives.keys() - having:
            self.ended.append(self.lives.pop(handle))
        for handle in having - self.lives.keys():
            self.lives[handle] = Life()

    def happen(self) -> None:
        """Something that no caller does."""
        rng, wire, world = self.rng, self.wire, self.wire.world
        event = rng.random()
        if event < 0.35:
            world.save(rng.sample(IDS, 2))
        elif event < 0.55:
            kinds = [errors.Overloaded("full", retry_after=0.3), errors.StoreUnavailable("away"), errors.NotOwner("no")]
            world.refuse.append(rng.choice(kinds))
        elif event < 0.65:
            ticket = self.rival.core.open(Group(MODEL, 0, False), [rng.choice(IDS)], pb.OPEN_MODE_EITHER)
            self.rival.settle()
            if not ticket.errors:
                self.rival.step(int(ticket.handles[0]), np.ones((1, FEATURES)))
                self.rival.settle()
                self.rival.core.close(ticket.handles, delete=rng.random() < 0.3)
                self.rival.settle()
            self.tell()
        elif wire.stream is None:
            wire.connect()
        else:
            wire.cut()
            if rng.random() < 0.4:
                world.save()  # A store keeps claims, and this world only what was saved.
                world.restart()

    def tell(self) -> None:
        """The server tells the stream of sessions that it lost."""
        wire = self.wire
        for handle, (session_id, epoch) in [*wire.stream.bound.items()] if wire.stream is not None else ():
            if not wire.holds(session_id, epoch) and wire.stream is not None:
                del wire.stream.bound[handle]
                known = session_id in wire.world.rows
                lost = errors.SessionMoved("newer") if known else errors.SessionNotFound("it was deleted")
                wire.responses.append(notice(handle, lost))

    def finish(self) -> None:
        """Lets go of everything, and waits until it is gone."""
        core = self.wire.core
        for turn in range(2):
            self.wire.world.refuse.clear()
            if self.wire.stream is None:
                self.wire.connect()
            for _ in range(40):
                self.wire.now += 1.0
                self.wire.run()
            self.notice()
            for holder in self.holders if not turn else ():
                assert holder.gone or holder.ticket.done, "an open is never answered"
                if holder.handle >= 0:
                    self.waits.append(core.close(np.array([holder.handle]), delete=self.rng.random() < 0.3))
                    holder.gone = True

    def check(self) -> None:
        """Everybody was told, and nothing is left."""
        wire, core = self.wire, self.wire.core
        for life in [*self.ended, *self.lives.values()]:
            for _, ticket in life.steps:
                assert ticket.done or id(ticket) in life.cancelled, "a step is never answered"
            life.check()
        for wait in self.waits:
            assert wait.done, "an operation is never answered"
            found = wait.errors.values() if isinstance(wait, ControlTicket | OpenTicket) else ()
            assert all(isinstance(error, TOLD) for error in found), found
        table = core.table
        assert not core.busy
        assert (table.state[: table.size] == State.FREE).all(), table.state[: table.size]
        assert table.names == {MODEL: {}} or not table.names
        opens, controls, log = core.opens, core.controls, core.log
        left = [table.failures, table.untaken, table.unheard, table.leaving, table.initial, controls.joined]
        left += [core.sharing.waiting, core.sharing.forsaken, opens.waiting, opens.in_flight, controls.waiting]
        left += [controls.in_flight, log.unsent, log.in_flight, log.lanes]
        assert not any(left), left
        assert (core.log.windows.held, core.log.sessions_in_flight) == (0, 0)
        core.buffer.admits(1 << 40)
        assert core.buffer.bytes == 0
        assert wire.stream is not None
        bound = {session_id for session_id, epoch in wire.stream.bound.values() if wire.holds(session_id, epoch)}
        assert not bound, bound


@searched(
    100,
    300,
    # A session goes while its chunk has a number and is not written yet.
    {"seed": 123165, "durability": pb.DURABILITY_MODE_SYNC},
    # A session fails and is reset while a step that came before the reset waits for room.
    {"seed": 47, "durability": pb.DURABILITY_MODE_INTERVAL},
    seed=st.integers(0, 2**32),
    durability=st.sampled_from([pb.DURABILITY_MODE_INTERVAL, pb.DURABILITY_MODE_SYNC]),
)
def test_every_caller_is_told_and_nothing_is_left_whatever_happens_between(
    seed: int, durability: pb.DurabilityMode
) -> None:
    """Opens, joins, steps, resets, flushes, closes and deletes, each cancelled at times; breaks, restarts, rivals."""
    rng = random.Random(seed)
    program = Program(rng, durability)
    for _ in range(rng.randrange(20, 150)):
        program.wire.now += 0.1
        chosen = rng.random()
        if chosen < 0.4:
            program.act()
        elif chosen < 0.93:
            rng.choice([program.wire.send, program.wire.serve, program.wire.deliver])()
        elif chosen < 0.95:
            program.wire.core.check(program.wire.now)
        else:
            program.happen()
    program.finish()
    program.check()
