"""Sessions that are closed while others still use them: whoever comes later is told so, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import strategies as st

from statestream import errors
from statestream.core import ControlTicket, OpenTicket, PoolTicket, StepTicket, Ticket, leave
from statestream.v1 import inference_pb2 as pb
from tests.client.fake_server import Fake
from tests.client.twins import Aio, Twin
from tests.client.wire import Wire, make_core, notice
from tests.client.world import FEATURES, World
from tests.support.searching import searched


@dataclass
class Holder:
    """Who holds a handle: what it submitted, in order, and what of that came too late."""

    id: str
    handle: int
    closes: list[tuple[ControlTicket, bool]] = field(default_factory=list)
    done: list[tuple[np.ndarray | None, StepTicket | PoolTicket]] = field(default_factory=list)
    late: list[Ticket] = field(default_factory=list)
    waits: list[ControlTicket] = field(default_factory=list)

    @property
    def deleted(self) -> bool:
        """Whether its first close was a delete."""
        return bool(self.closes) and self.closes[0][1]

    def step(self, wire: Wire, x: np.ndarray, *, pool: bool) -> None:
        """A step, alone or as a pool of one row."""
        ticket: StepTicket | PoolTicket = (
            wire.pool(np.array([self.handle]), x[np.newaxis], len(x)) if pool else wire.step(self.handle, x)
        )
        if self.closes:
            self.late.append(ticket)
        else:
            self.done.append((x, ticket))

    def reset(self, wire: Wire) -> None:
        ticket = wire.reset(np.array([self.handle]))
        if self.closes:
            self.late.append(ticket)
        else:
            self.done.append((None, ticket))

    def close(self, wire: Wire, *, delete: bool) -> None:
        self.closes.append((wire.core.close(np.array([self.handle]), delete=delete), delete))

    def control(self, wire: Wire, rng: random.Random) -> None:
        ask = rng.choice([wire.core.flush, wire.core.settle])
        (self.late if self.closes else self.waits).append(ask(np.array([self.handle])))

    def cancel(self, wire: Wire) -> None:
        """Nobody waits any more for what was asked last; a close goes on."""
        if self.closes:
            wire.core.cancel(self.closes[-1][0])
        elif self.waits:
            wire.core.cancel(self.waits.pop())

    def check(self, wire: Wire) -> None:
        """Everybody has an answer, and it is the right one."""
        state, position = np.zeros(FEATURES, np.float32), 0
        for one in self.done:
            x, ticket = one
            assert ticket.done
            assert ticket.error is None
            if x is None:
                state, position = np.zeros(FEATURES, np.float32), position + 1
                continue
            got = ticket.value["y"][0] if isinstance(ticket, PoolTicket) else ticket.value
            assert got.tolist() == (state + np.cumsum(x, axis=0)).tolist()
            state, position = got[-1], position + len(x)
        assert all(ticket.done and not ticket.errors for ticket in self.waits)
        for late in self.late:
            assert late.done
            refused = late.errors.values() if isinstance(late, ControlTicket | OpenTicket) else [late.error]
            assert [type(error) for error in refused] == [errors.Closed]
        for close, delete in self.closes:
            assert close.done
            wanted = [errors.Closed] if delete and not self.deleted else []
            assert [type(error) for error in close.errors.values()] == wanted
        if self.deleted:
            assert self.id not in wire.world.rows
            return
        assert wire.world.rows[self.id].position == position
        assert (wire.world.rows[self.id].state == state).all()
        if self.closes:
            # Nobody can replay it now, so the server has to be able to lose its memory.
            assert wire.world.durable(self.id) == position


# A flush and, behind it, the close of one session have their turn at the same moment as the close of another.
@searched(
    70,
    200,
    {"seed": 2039, "durability": pb.DURABILITY_MODE_SYNC},
    seed=st.integers(0, 2**32),
    durability=st.sampled_from([pb.DURABILITY_MODE_INTERVAL, pb.DURABILITY_MODE_SYNC]),
)
def test_what_comes_before_a_close_is_answered_and_what_comes_behind_it_is_refused(
    seed: int, durability: pb.DurabilityMode
) -> None:
    """Random schedules of every operation, before, during and after the close of the session that it is about."""
    rng = random.Random(seed)
    room = rng.choice([64 << 20, 2000])  # The small buffer has steps wait for room.
    wire = Wire(World(durability), make_core(keep_seconds=0.0, replay_buffer_bytes=room))
    wire.connect()
    holders: list[Holder] = []
    current: dict[int, Holder] = {}

    def opened() -> None:
        """A session more, which may get the handle of one that was closed."""
        name = f"s{len(holders)}"
        wire.settle()
        (handle,) = wire.open(name)
        current[int(handle)] = Holder(name, int(handle))
        holders.append(current[int(handle)])

    opened()
    opened()
    for _ in range(rng.randrange(20, 120)):
        wire.now += 0.1
        action, holder = rng.random(), rng.choice(list(current.values()))
        if action < 0.2:
            x = np.array([[rng.randrange(9)] * FEATURES for _ in range(rng.randrange(1, 5))], np.float32)
            holder.step(wire, x, pool=rng.random() < 0.3)
        elif action < 0.24:
            holder.reset(wire)
        elif action < 0.28:
            holder.control(wire, rng)
        elif action < 0.34:
            holder.close(wire, delete=rng.random() < 0.4)
        elif action < 0.37:
            holder.cancel(wire)
        elif action < 0.39 and len(holders) < 8:
            opened()
        elif action < 0.6:
            wire.send()
        elif action < 0.78:
            wire.serve()
        elif action < 0.94:
            wire.deliver()
        elif action < 0.96:
            wire.world.refuse.append(errors.Overloaded("full", retry_after=0.3))
        elif action < 0.98 and wire.stream is not None:
            wire.cut()
            if rng.random() < 0.5:
                wire.world.restart()
        elif wire.stream is None:
            wire.connect()
    wire.settle()
    for holder in holders:
        holder.check(wire)


@searched(70, 200, seed=st.integers(0, 2**32))
def test_a_client_that_is_closed_answers_everybody(seed: int) -> None:
    """`leave` and `give_up` at any moment of any other operation; steps go on coming in between."""
    rng = random.Random(seed)
    wire = Wire(core=make_core(keep_seconds=0.0, replay_buffer_bytes=rng.choice([64 << 20, 2000])))
    wire.connect()
    handles = wire.open(*"abc")
    tickets: list[Ticket] = []

    def some() -> None:
        for _ in range(rng.randrange(25)):
            action, one = rng.random(), np.array([rng.choice(handles)])
            if action < 0.3:
                tickets.append(wire.step(one[0], np.ones((rng.randrange(1, 5), FEATURES))))
            elif action < 0.35:
                tickets.append(wire.pool(handles, np.ones((3, 1, FEATURES)), 1))
            elif action < 0.45:
                ask = rng.choice([wire.reset, wire.core.flush, wire.core.settle])
                tickets.append(ask(one))
            elif action < 0.5:
                tickets.append(wire.core.close(one, delete=rng.random() < 0.5))
            elif action < 0.53 and wire.stream is not None:
                wire.cut()
            elif action < 0.56 and wire.stream is None:
                wire.connect()
            else:
                _ = rng.choice([wire.send, wire.serve, wire.deliver])()

    some()
    heard: list[bool] = []
    leave(wire.core, lambda: heard.append(True))
    some()
    if rng.random() < 0.5 and wire.stream is not None:
        wire.settle()
        assert heard == [True]
    if wire.stream is not None:
        wire.cut()
    wire.core.give_up(errors.Closed("the client was closed"))
    assert all(ticket.done for ticket in tickets)
    assert not wire.core.busy


def test_a_step_behind_a_close_never_reaches_who_has_the_handle_next() -> None:
    wire = Wire(core=make_core(keep_seconds=0.0))
    wire.connect()
    (handle,) = wire.open("a")
    wire.core.close(np.array([handle]), delete=False)
    late = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    (again,) = wire.open("b")
    assert again == handle
    wire.run()
    assert isinstance(late.error, errors.Closed)
    assert wire.world.rows["b"].position == 0


def test_a_close_that_joins_another_leaves_the_next_session_of_the_handle_alone() -> None:
    wire = Wire(core=make_core(keep_seconds=0.0))
    wire.connect()
    (handle,) = handles = wire.open("a")
    first = wire.core.close(handles, delete=True)
    while wire.send():
        pass
    second = wire.core.close(handles, delete=False)
    while wire.serve() or wire.deliver():
        pass
    assert first.done
    (again,) = wire.open("b")
    assert again == handle
    wire.run()
    assert second.done
    ticket = wire.step(again, np.ones((1, FEATURES)))
    wire.run()
    assert ticket.error is None


def test_closing_a_session_that_failed_costs_what_is_sent_beside_it_nothing() -> None:
    wire = Wire(core=make_core(keep_seconds=0.0))
    wire.connect()
    lost, beside = wire.open("lost", "beside").tolist()
    wire.core.receive(notice(lost, errors.SessionMoved("a newer writer opened the session")), wire.now)
    wire.core.close(np.array([lost]), delete=False)
    step = wire.step(beside, np.ones((1, FEATURES)))
    wire.run()
    assert step.done
    assert step.error is None
    assert wire.stream is not None
    assert lost not in wire.stream.bound


def test_a_flush_that_was_put_off_waits_for_answers_and_not_for_a_time_that_is_over(wire: Wire) -> None:
    """Else whoever writes would be woken for it at once, again and again."""
    (handle,) = handles = wire.open("a")
    wire.world.refuse = [errors.Overloaded("full", retry_after=5.0)]
    step = wire.step(handle, np.ones((1, FEATURES)))
    flush = wire.core.flush(handles)
    wire.run()
    assert not step.done
    assert not flush.done
    for _ in range(3):
        wire.now += 1.0
        wire.run()
        due = wire.core.due()
        assert due is None or due > wire.now
    wire.settle()
    assert flush.done
    assert not flush.errors


def test_a_flush_that_overtakes_replies_is_done_behind_them(wire: Wire) -> None:
    """Replies to what is sent again after a break come as the server has room for them."""
    (handle,) = handles = wire.open("a")
    wire.step(handle, np.ones((1, FEATURES)))
    flush = wire.core.flush(handles)
    while wire.send() or wire.serve():
        pass
    wire.responses.reverse()
    assert wire.deliver()
    assert not flush.done
    wire.run()
    assert flush.done
    assert not flush.errors
    assert wire.core.table.answered[handle] == 1


def test_a_close_waits_for_steps_that_wait_for_room() -> None:
    wire = Wire(core=make_core(replay_buffer_bytes=1200))
    wire.connect()
    (handle,) = handles = wire.open("a")
    steps = [wire.step(handle, np.ones((1, FEATURES))) for _ in range(6)]
    close = wire.core.close(handles, delete=False)
    wire.settle()
    assert close.done
    assert [float(step.value[0, 0]) for step in steps] == [1, 2, 3, 4, 5, 6]
    assert wire.world.durable("a") == 6


@pytest.mark.parametrize("ending", ["close", "delete", "client"])
async def test_calls_beside_the_end_of_their_session(fake: Fake, twin: Twin, ending: str) -> None:
    """Each gets what it asked for, or Closed; none waits."""
    for turn in range(6):
        client = await twin.connect(fake.address)
        one = await twin.call(client.session, "sum", f"{ending}-{turn}")
        pool = await twin.call(client.sessions, "sum", 3)
        x = np.ones(FEATURES, np.float32)

        async def ask(turn: int, number: int, one: object = one, pool: object = pool, x: np.ndarray = x) -> str:
            for _ in range(turn):
                await asyncio.sleep(0)
            name = ("step", "flush", "step", "reset", "fork", "snapshot")[number % 6]
            try:
                await twin.call(getattr(one, name), *([x] if name == "step" else []))
                await twin.call(pool.step, np.tile(x, (3, 1)))  # type: ignore[attr-defined]
            except (errors.Closed, errors.SessionNotFound) as error:
                return error.reason
            return ""

        async with asyncio.timeout(30):
            asking = [asyncio.create_task(ask(turn, number)) for number in range(12)]
            for _ in range(turn):
                await asyncio.sleep(0)
            ends = [client.close] if ending == "client" else [getattr(thing, ending) for thing in (one, pool)]
            ended = [asyncio.create_task(twin.call(end)) for end in ends]
            said = {await task for task in asking}
            for task in ended:
                await task
        assert said <= {"", "CLOSED", "SESSION_NOT_FOUND"}
        with pytest.raises(errors.Closed):
            await twin.call(one.step, x)
        await twin.call(client.close)


async def test_a_session_is_forked_in_the_midst_of_a_stream_of_steps(twin: Twin, fake: Fake) -> None:
    """A stream always has steps under way; the fork's turn comes all the same, and no step is lost by it."""
    client = await twin.connect(fake.address)
    try:
        session = await twin.call(client.session, "sum", "a")
        forked = threading.Event()

        def items() -> Iterator[np.ndarray]:
            while not forked.is_set():
                yield np.ones(FEATURES, np.float32)

        async def live() -> AsyncIterator[np.ndarray]:
            for x in items():
                yield x
                await asyncio.sleep(0)

        source = items() if twin.name == "sync" else live()
        streaming = asyncio.create_task(twin.collect(session.stream, source, ahead=4))
        try:
            async with asyncio.timeout(30):
                copy = await twin.call(session.fork, "copy")
        finally:
            forked.set()
        outputs = [float(y[0]) for y in await streaming]
        assert outputs == [float(n + 1) for n in range(len(outputs))]
        assert 0 <= copy.position <= len(outputs)
    finally:
        await twin.call(client.close)


async def test_a_close_that_is_cancelled_happens_all_the_same(fake: Fake) -> None:
    client = await Aio().connect(fake.address)
    try:
        for turns in range(6):
            session = await client.session("sum", f"s{turns}")
            step = asyncio.create_task(session.step(np.ones(FEATURES, np.float32)))
            await asyncio.sleep(0)
            closing = asyncio.create_task(session.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            async with asyncio.timeout(30):
                with contextlib.suppress(asyncio.CancelledError):
                    await closing
                assert float((await step)[0]) == 1
                if turns:
                    assert session.closed
                    with pytest.raises(errors.Closed):
                        await session.step(np.ones(FEATURES, np.float32))
                again = await client.session("sum", f"s{turns}")
                assert again.position == 1
                assert float((await again.step(np.ones(FEATURES, np.float32)))[0]) == 2
    finally:
        await client.close()


def test_a_second_close_does_not_wait_for_who_has_the_handle_next(wire: Wire) -> None:
    """Of two sessions one is closed at once, the other behind a reset: the second close of both is over with them."""
    first, second = wire.open("a", "b").tolist()
    reset = wire.reset(np.array([first]))
    closes = [wire.core.close(np.array(some), delete=False) for some in ([first], [second], [first, second])]
    wire.send()
    (mark,) = [request for request in wire.requests if request.HasField("chunk")]
    wire.requests.remove(mark)
    wire.run()
    assert closes[1].done
    assert wire.open("c").tolist() == [second]
    wire.requests.append(mark)
    wire.run()
    assert reset.done
    assert all(close.done for close in closes)


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_a_close_whose_answer_is_lost_is_sent_again_and_makes_no_session_anew(delete: bool, gone: bool) -> None:
    wire = Wire(World(pb.DURABILITY_MODE_SYNC), make_core(keep_seconds=0.0))
    wire.connect()
    handles = wire.open("a")
    close = wire.core.close(handles, delete=delete)
    wire.send()
    wire.serve()
    if gone and not delete:
        wire.world.delete("a")
    wire.cut()
    wire.connect()
    if delete:
        wire.send()
        (again,) = wire.requests
        assert (again.open.mode, again.open.incarnation) == (pb.OPEN_MODE_RESUME, 1001)
    else:
        assert close.done  # The stream took it along.
    wire.settle()
    assert close.done
    assert not close.errors
    assert ("a" in wire.world.rows) == (not delete and not gone)


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("delete", [False, True])
def test_a_session_that_moved_while_it_is_closed_is_told_where_something_may_be_lost(
    wire: Wire, delete: bool, durable: bool
) -> None:
    (handle,) = handles = wire.open("a")
    wire.step(int(handle), np.ones((1, FEATURES)))
    wire.run()
    if durable:
        wire.core.flush(handles)
        wire.world.save()
        wire.run()
    wire.core.receive(notice(int(handle), errors.SessionMoved("a newer writer has it")), 0.0)
    close = wire.core.close(handles, delete=delete)
    wire.settle()
    heard = [type(error) for error in close.errors.values()]
    assert heard == ([errors.SessionMoved] if delete or not durable else [])
