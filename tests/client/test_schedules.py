"""Exactly once, in order, whatever happens to the stream: random schedules against a server in memory."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from statestream import errors
from statestream.core import PoolTicket, State, StepTicket
from statestream.v1 import inference_pb2 as pb
from tests.client.wire import Wire, make_core
from tests.client.world import FEATURES, World, split
from tests.support.searching import searched


@dataclass
class Caller:
    """One session's caller: what it sent, and what it got."""

    handle: int
    sent: list[np.ndarray] = field(default_factory=list)
    got: list[tuple[int, StepTicket | PoolTicket, int]] = field(default_factory=list)


@searched(
    50,
    150,
    seed=st.integers(0, 2**32),
    durability=st.sampled_from([pb.DURABILITY_MODE_INTERVAL, pb.DURABILITY_MODE_SYNC]),
)
def test_every_chunk_is_applied_once_and_answered_in_order_whatever_the_schedule(
    seed: int, durability: pb.DurabilityMode
) -> None:
    """Random schedules of steps, cancellations, frames, answers split and reordered, lost streams, saves, restarts."""
    rng = random.Random(seed)
    wire = Wire(World(durability), make_core(keep_seconds=rng.choice([0.0, 5.0])))
    wire.connect()
    callers = [Caller(int(handle)) for handle in wire.open(*"abcde")]
    handles = np.array([caller.handle for caller in callers])
    for _ in range(rng.randrange(20, 120)):
        action = rng.random()
        wire.now += 0.1
        if action < 0.25:
            row = rng.randrange(len(callers))
            x = np.array([[rng.randrange(9)] * FEATURES for _ in range(rng.randrange(1, 5))], np.float32)
            callers[row].sent.append(x)
            callers[row].got.append((len(x), wire.step(callers[row].handle, x), -1))
        elif action < 0.28:
            caller = rng.choice(callers)
            ticket = caller.got[-1][1] if caller.got else None
            if isinstance(ticket, StepTicket):
                wire.core.cancel(ticket)
                dropped = not ticket.done and not ticket.framed
                assert (wire.core.table.next[caller.handle] == ticket.start) == dropped
                if dropped:
                    caller.sent.pop()
                    caller.got.pop()
        elif action < 0.38:
            steps = rng.randrange(1, 7)
            rows = sorted(rng.sample(range(5), rng.randrange(1, 6)))
            lengths = np.array([rng.randrange(1, steps + 1) for _ in rows])
            x = np.array([[[rng.randrange(9)] * FEATURES for _ in range(steps)] for _ in rows], np.float32)
            pool = wire.pool(handles[rows], x, lengths)
            for at, row in enumerate(rows):
                callers[row].sent.append(x[at, : lengths[at]])
                callers[row].got.append((int(lengths[at]), pool, at))
        elif action < 0.6:
            wire.send()
        elif action < 0.75:
            wire.serve()
        elif action < 0.9:
            if wire.responses:
                first = wire.responses.pop(0)
                parts = split(first, rng.randrange(1, 5)) if rng.random() < 0.4 else [first]
                for part in parts:
                    part.frame = rng.choice([first.frame, part.frame])
                wire.responses[:0] = parts
                wire.deliver()
        elif action < 0.93:
            wire.world.save(rng.sample(["a", "b", "c", "d", "e"], 3))
        elif action < 0.95:
            wire.world.refuse.append(
                rng.choice(
                    [
                        errors.Overloaded("full", retry_after=0.3),
                        errors.StoreUnavailable("away"),
                        errors.NotOwner("elsewhere"),
                        errors.SessionNotFound("not bound"),
                    ]
                )
            )
        else:
            wire.cut()
            if rng.random() < 0.5:
                wire.world.restart()
            wire.connect()
    for _ in range(60):
        wire.now += 1.0
        wire.run()
    for caller in callers:
        expected = np.cumsum(np.concatenate(caller.sent or [np.zeros((0, FEATURES))]), axis=0)
        at = 0
        for length, ticket, row in caller.got:
            assert ticket.done
            assert ticket.error is None
            if isinstance(ticket, PoolTicket):
                assert not ticket.errors
                got = ticket.value["y"][row, :length]
            else:
                got = ticket.value
            np.testing.assert_array_equal(got, expected[at : at + length])
            at += length
        assert wire.core.table.answered[caller.handle] == at
        assert wire.world.rows[wire.core.table.ids[caller.handle]].position == at
    assert not wire.core.log.unsent
    assert not wire.core.log.in_flight
    assert not wire.core.log.windows.held
    assert (wire.core.table.state[handles] == State.OPEN).all()
    wire.world.save()
    flush = wire.core.flush(handles)
    wire.run()
    assert flush.done
    wire.core.buffer.admits(1 << 40)
    assert wire.core.buffer.bytes == 0
