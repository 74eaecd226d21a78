"""A server that is there and answers some things never: whoever waits is told in time, and nobody else pays for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from statestream import errors
from statestream.core import Group
from statestream.v1 import inference_pb2 as pb
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.wire import Wire, error_of, make_core, notice
from tests.client.world import MODEL, ones

Unheard = Callable[[pb.StreamRequest], bool]
SECONDS = 10.0


@pytest.fixture
def wire() -> Wire:
    wire = Wire(core=make_core(retry_seconds=SECONDS, keep_seconds=0.0))
    wire.connect()
    return wire


def run(wire: Wire, unheard: Unheard, seconds: float = 2 * SECONDS) -> list[pb.StreamRequest]:
    """Lets time pass, in which some requests are lost and nobody told; returns these."""
    lost: list[pb.StreamRequest] = []
    until = wire.now + seconds
    while wire.now < until:
        wire.now += 1.0
        moved = True
        while moved:
            moved = wire.send()
            for request in [one for one in wire.requests if unheard(one)]:
                wire.requests.remove(request)
                lost.append(request)
            moved = wire.serve() or wire.deliver() or moved
        wire.core.check(wire.now)
    return lost


def about(handle: int, kind: str) -> Unheard:
    """Requests of a kind that name one session."""
    column = int(handle).to_bytes(4, "little")
    return lambda request: request.WhichOneof("request") == kind and column in getattr(request, kind).handles


def answer(wire: Wire, lost: list[pb.StreamRequest]) -> None:
    """What was lost comes all the same, late."""
    assert wire.stream is not None
    for request in lost:
        wire.responses += wire.stream.receive(request)
    wire.run()


def check_empty(wire: Wire) -> None:
    core = wire.core
    assert not core.busy
    assert not core.log.in_flight
    assert (core.log.windows.held, core.log.sessions_in_flight) == (0, 0)
    assert not core.opens.in_flight
    assert not core.controls.in_flight


def test_a_step_that_is_never_answered_is_its_callers_to_know_and_the_others_go_on(wire: Wire) -> None:
    stuck, fine = wire.open("stuck", "fine").tolist()
    waiting = [wire.step(stuck, ones(1)), wire.step(stuck, ones(1))]
    behind = [wire.step(fine, ones(1)) for _ in range(3)]
    lost = run(wire, about(stuck, "chunk"))
    for ticket in waiting:
        assert isinstance(ticket.error, errors.ServerUnavailable)
        assert all(word in ticket.error.message for word in ("'stuck'", "10 s (`retry_timeout`)", "from position 0 on"))
    # Frames are shared: what was lost with it is lost for the other session as well, and told.
    told = [ticket.error for ticket in behind if ticket.error is not None]
    assert all("'fine'" in error.message for error in told)
    other = int(wire.open("other")[0])
    assert not wire.core.busy
    step = wire.step(other, ones(1))
    wire.run()
    assert step.value[0, 0] == 1
    answer(wire, lost)
    (again,) = wire.open("stuck")
    step = wire.step(again, ones(1))
    wire.run()
    assert step.value[0, 0] == 3
    check_empty(wire)


@pytest.mark.parametrize("together", [False, True])
def test_steps_of_sessions_that_others_took_hold_up_nobody(wire: Wire, *, together: bool) -> None:
    """The server tells of such sessions by a notice, and answers none of the steps that it had of them."""
    *taken, other = wire.open(*"abcdefghijkl").tolist()
    steps = []
    for part in (taken[:5], [*taken[5:], *([other] if together else [])]):
        steps += [wire.step(handle, ones(1)) for handle in part]
        assert wire.send()
    assert len(wire.core.log.in_flight) == 2
    first, second = wire.requests
    wire.requests.clear()
    assert wire.stream is not None
    if together:  # A frame of which the rows of one session alone are answered.
        last = wire.stream.receive(second)[0]
        last.result.handles, last.result.positions = last.result.handles[-4:], last.result.positions[-8:]
        last.result.durable_positions = last.result.durable_positions[-8:]
        (y,) = last.result.outputs
        y.shape[0], y.data = 1, y.data[-len(y.data) // y.shape[0] :]
        wire.core.receive(last, wire.now)
    for handle in taken:
        wire.core.receive(notice(handle, errors.SessionMoved("a newer writer opened the session")), wire.now)
    chunks = wire.core.log
    assert not chunks.in_flight
    assert (chunks.windows.held, chunks.sessions_in_flight) == (0, 0)
    assert all(isinstance(step.error, errors.SessionMoved) for step in steps[: len(taken)])
    late = wire.step(other, ones(1))
    wire.run()
    assert late.done
    assert late.error is None
    # What comes of the first frame all the same is nobody's.
    wire.responses += wire.stream.receive(first)
    wire.run()
    wire.core.receive(pb.StreamResponse(go_away=pb.GoAwayFrame()), wire.now)
    assert wire.core.drained


def test_answers_that_come_slowly_are_answers(wire: Wire) -> None:
    (handle,) = wire.open("a")
    steps = [wire.step(handle, ones(1)) for _ in range(6)]
    while wire.send():
        pass
    for _ in range(6):
        wire.now += 0.8 * SECONDS
        wire.serve()
        wire.deliver()
        wire.core.check(wire.now)
    assert [float(step.value[0, 0]) for step in steps] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("late", [False, True])
def test_an_open_that_is_never_answered_is_told_and_let_go_if_it_comes_late(wire: Wire, late: bool) -> None:
    first = wire.core.open(Group(MODEL, 0, False), ["a"], pb.OPEN_MODE_EITHER)
    lost = run(wire, lambda request: request.WhichOneof("request") == "open")
    assert isinstance(first.error, errors.ServerUnavailable)
    assert "the open of session 'a'" in first.error.message
    if late:
        answer(wire, lost)
        assert not wire.core.table.state.any()
    else:
        wire.cut()
        wire.connect()
        wire.settle()
    assert wire.stream is not None
    assert not wire.stream.bound
    assert wire.open("a").size == 1
    check_empty(wire)


@pytest.mark.parametrize("what", ["flush", "close", "delete"])
def test_a_flush_or_a_close_that_is_never_answered_is_told(wire: Wire, what: str) -> None:
    handles = wire.open("a")
    wire.step(int(handles[0]), ones(1))
    wire.run()
    ticket = wire.core.flush(handles) if what == "flush" else wire.core.close(handles, delete=what == "delete")
    lost = run(wire, lambda request: request.WhichOneof("request") in ("flush", "close"), 4 * SECONDS)
    assert ticket.done
    assert [type(error) for error in ticket.errors.values()] == [errors.ServerUnavailable]
    answer(wire, lost)
    check_empty(wire)


def test_one_session_that_is_not_opened_again_holds_up_no_other(wire: Wire) -> None:
    stuck, fine = wire.open("stuck", "fine").tolist()
    wire.core.table.incarnation[stuck] += 5  # It has a frame of its own.
    steps = [wire.step(handle, ones(1)) for handle in (stuck, fine)]
    wire.cut()
    wire.connect()
    lost = run(wire, lambda request: "stuck" in request.open.ids)
    assert steps[1].value[0, 0] == 1
    assert isinstance(steps[0].error, errors.ServerUnavailable)
    answer(wire, lost)
    (again,) = wire.open("stuck")
    step = wire.step(again, ones(1))
    wire.run()
    assert step.value[0, 0] == 1
    check_empty(wire)


def test_steps_that_wait_for_room_that_does_not_come_are_told() -> None:
    wire = Wire(core=make_core(retry_seconds=SECONDS, replay_buffer_bytes=1200))
    wire.connect()
    (handle,) = wire.open("a")
    steps = [wire.step(handle, ones(1)) for _ in range(6)]
    run(wire, lambda request: request.WhichOneof("request") == "flush")
    done = [step for step in steps if step.error is None]
    assert [float(step.value[0, 0]) for step in done] == [1, 2]
    assert all("replay_buffer_bytes" in str(step.error) for step in steps[2:])
    step = wire.step(handle, ones(1))
    run(wire, lambda _: False)
    assert step.value[0, 0] == 3
    assert not wire.core.busy


def test_a_reset_behind_a_step_that_is_never_answered_is_told_and_nothing_is_mixed_up(wire: Wire) -> None:
    (handle,) = wire.open("a")
    step = wire.step(handle, 5 * ones(1))
    lost = run(wire, about(handle, "chunk"))
    assert step.error is not None
    reset, behind = wire.reset(np.array([handle])), wire.step(handle, ones(1))
    run(wire, lambda _: False)
    assert isinstance(error_of(reset), errors.ServerUnavailable)
    assert isinstance(behind.error, errors.ServerUnavailable)
    answer(wire, lost)
    again = wire.reset(np.array([handle]))
    fresh = wire.step(handle, ones(1))
    wire.run()
    assert error_of(again) is None
    assert fresh.value[0, 0] == 1


def test_a_reset_that_is_never_answered_is_told_and_a_late_answer_changes_nothing(wire: Wire) -> None:
    (handle,) = wire.open("a")
    reset, behind = wire.reset(np.array([handle])), wire.step(handle, ones(1))
    lost = run(wire, about(handle, "chunk"))
    assert isinstance(reset.error, errors.ServerUnavailable)
    assert isinstance(behind.error, errors.ServerUnavailable)
    answer(wire, lost)
    assert wire.step(handle, ones(1)).error is not None
    again = wire.reset(np.array([handle]))
    wire.run()
    assert error_of(again) is None
    step = wire.step(handle, ones(1))
    wire.run()
    assert step.value[0, 0] == 1


def test_a_stream_on_which_nothing_comes_is_given_up(wire: Wire) -> None:
    (handle,) = wire.open("a")
    wire.now += 5 * SECONDS
    assert not wire.core.check(wire.now)  # Nobody waits.
    wire.step(handle, ones(1))
    wire.send()
    # It has not waited long, though nothing came for long.
    assert not wire.core.check(wire.now)
    assert wire.core.check(wire.now + 2 * SECONDS)


# ── both clients ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["step", "session", "flush", "close", "reset", "pool"])
async def test_calls_that_the_server_never_answers_end_and_the_client_stays_usable(
    connect: Connect, twin: Twin, fake: Fake, what: str
) -> None:
    client = await connect(retry_timeout=0.5)
    session = await twin.call(client.session, "sum", "a")
    pool = await twin.call(client.sessions, "sum", 3)
    kinds = {"step": "chunk", "session": "open", "flush": "flush", "close": "close", "reset": "chunk", "pool": "chunk"}
    fake.unheard = lambda request: request.WhichOneof("request") == kinds[what]
    calls: dict[str, tuple[object, ...]] = {
        "step": (session.step, ones()),
        "session": (client.session, "sum", "b"),
        "pool": (pool.step, ones(3)),
    }
    with pytest.raises(errors.StatestreamError, match="did not answer") as caught:
        await asyncio.wait_for(twin.call(*calls.get(what, (getattr(session, what, None),))), 20)
    if what != "pool":
        assert isinstance(caught.value, errors.ServerUnavailable)
    fake.unheard = lambda _: False
    other = await twin.call(client.session, "sum", "c")
    assert (await twin.call(other.step, ones()))[0] == 1
    again = await twin.call(client.session, "sum", "a")
    await twin.call(again.step, ones())
