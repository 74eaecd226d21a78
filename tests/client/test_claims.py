"""Whose a session is, as its client sees it: claims that are repeated, newer writers, owners that are lost."""

from __future__ import annotations

import numpy as np
import pytest

from statestream import errors
from statestream.core import Group, StreamCore
from statestream.v1 import inference_pb2 as pb
from tests.client.wire import Wire, notice
from tests.client.world import FEATURES, MODEL, World


def test_a_newer_writer_takes_the_session_and_a_reconnect_does_not_take_it_back() -> None:
    world = World()
    first, second = Wire(world), Wire(world, StreamCore(b"2" * 16, 2000))
    first.connect()
    second.connect()
    (mine,) = first.open("a")
    first.cut()
    (theirs,) = second.open("a")
    first.connect()
    first.run()
    fenced = first.step(mine, np.ones((1, FEATURES)))
    assert isinstance(fenced.error, errors.SessionMoved)
    ticket = second.step(theirs, np.ones((1, FEATURES)))
    second.run()
    assert ticket.error is None


@pytest.mark.parametrize("ends", ["", "close", "delete"])
@pytest.mark.parametrize("streams", [1, 2, 5])
def test_who_lost_many_streams_takes_no_session_back_that_another_client_took_in_between(
    streams: int, ends: str
) -> None:
    """Each stream raises the incarnation, above that of the other client; the epoch is the last that was seen."""
    world = World()
    first, second = Wire(world), Wire(world, StreamCore(b"2" * 16, 900))
    first.connect()
    second.connect()
    (mine,) = handles = first.open("a")
    close = first.core.close(handles, delete=ends == "delete") if ends else None
    first.send()  # A close leaves, and is lost.
    first.cut()
    (theirs,) = second.open("a")
    for _ in range(streams - 1):
        first.connect()
        first.send()
        first.cut()
    first.connect()
    first.run()
    if close is None:
        assert isinstance(first.step(mine, np.ones((1, FEATURES))).error, errors.SessionMoved)
    else:
        assert close.done
        assert [type(error) for error in close.errors.values()] == [errors.SessionMoved] * (ends == "delete")
    ticket = second.step(theirs, np.ones((1, FEATURES)))
    second.run()
    assert ticket.error is None
    assert world.rows["a"].writer == b"2" * 16


def test_a_reset_takes_back_a_session_that_another_client_took() -> None:
    """Its caller was told, and wants it all the same: it names the epoch that it was refused with."""
    world = World()
    first, second = Wire(world), Wire(world, StreamCore(b"2" * 16, 2000))
    first.connect()
    second.connect()
    (handle,) = handles = first.open("a")
    first.cut()
    second.open("a")
    first.connect()
    first.run()
    assert isinstance(first.step(handle, np.ones((1, FEATURES))).error, errors.SessionMoved)
    reset, step = first.reset(handles), first.step(handle, np.ones((1, FEATURES)))
    first.settle()
    assert reset.error is None
    assert step.error is None
    assert world.rows["a"].writer == bytes(16)


def test_a_caller_who_opens_takes_a_session_from_a_newer_client() -> None:
    world = World()
    first, second = Wire(world), Wire(world, StreamCore(b"2" * 16, 2000))
    first.connect()
    second.connect()
    second.open("a")
    (handle,) = first.open("a")
    ticket = first.step(handle, np.ones((1, FEATURES)))
    first.run()
    assert ticket.error is None
    assert world.rows["a"].incarnation == 2001


def test_many_sessions_refused_at_once_are_tried_again_at_once() -> None:
    world = World()
    first, second = Wire(world), Wire(world, StreamCore(b"2" * 16, 2000))
    first.connect()
    second.connect()
    ids = [str(n) for n in range(500)]
    second.open(*ids)
    world.frames.clear()
    handles = first.open(*ids)
    assert world.frames == ["open", "open"]
    assert (first.core.table.incarnation[handles] == 2001).all()


def test_create_survives_the_loss_of_its_reply_and_still_refuses_a_taken_id() -> None:
    wire = Wire()
    wire.connect()
    ticket = wire.core.open(Group(MODEL, 0, False), ["a"], pb.OPEN_MODE_CREATE)
    wire.send()
    wire.serve()
    wire.cut()
    wire.connect()
    wire.run()
    assert ticket.done
    assert not ticket.errors
    assert ticket.created.all()
    with pytest.raises(errors.SessionExists):
        wire.open("a", mode=pb.OPEN_MODE_CREATE)


@pytest.mark.parametrize("steps", [0, 1])
def test_create_that_is_repeated_refuses_the_session_of_somebody_else(steps: int) -> None:
    wire = Wire()
    wire.connect()
    wire.world.claim("a", pb.OPEN_MODE_CREATE, b"another writer..", 1, 0, 0, False)
    wire.world.rows["a"].position = steps
    ticket = wire.core.open(Group(MODEL, 0, False), ["a"], pb.OPEN_MODE_CREATE)
    wire.send()
    wire.cut()
    wire.connect()
    wire.run()
    assert ticket.done
    assert isinstance(ticket.errors[0], errors.SessionExists)


def test_a_notice_fails_a_session_that_moved_and_opens_one_that_only_lost_its_owner(wire: Wire) -> None:
    moved, lost = wire.open("moved", "lost")
    waiting = wire.step(moved, np.ones((1, FEATURES)))
    wire.core.receive(notice(int(moved), errors.SessionMoved("a newer writer has it")), 0.0)
    assert isinstance(waiting.error, errors.SessionMoved)
    wire.core.receive(notice(int(lost), errors.NotOwner("elsewhere")), 0.0)
    first = wire.world.rows["lost"].epoch
    ticket = wire.step(lost, np.ones((1, FEATURES)))
    wire.run()
    assert ticket.value[0, 0] == 1
    assert wire.world.rows["lost"].epoch == first + 1


def test_an_owner_lost_again_and_again_is_the_callers_to_know(wire: Wire) -> None:
    (handle,) = wire.open("a")
    ticket = wire.step(handle, np.ones((1, FEATURES)))
    for _ in range(10):
        wire.world.refuse = [errors.NotOwner("elsewhere")] * 3
        wire.run()
        wire.now += 1.0
    assert isinstance(ticket.error, errors.NotOwner)


TOP = (1 << 52) - (1 << 40) - 1


def test_a_claim_that_cannot_be_outbid_costs_its_session_alone() -> None:
    """The next claims of the client are as they were, and the others in the frame are opened."""
    world = World()
    world.most_incarnation = 10_000
    wire = Wire(world)
    wire.connect()
    world.claim("bad", pb.OPEN_MODE_CREATE, b"another writer..", TOP, 0, 0, False)
    world.claim("newer", pb.OPEN_MODE_CREATE, b"another writer..", 5000, 0, 0, False)
    ticket = wire.core.open(Group(MODEL, 0, False), ["bad", "newer", "fine"], pb.OPEN_MODE_EITHER)
    wire.settle()
    assert list(ticket.errors) == [0]
    assert isinstance(ticket.errors[0], errors.SessionMoved)
    assert str(TOP) in ticket.errors[0].message
    (handle,) = wire.open("later")
    assert wire.core.table.incarnation[handle] == 1000
    step = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert step.error is None


def test_what_one_session_makes_of_a_frame_costs_no_other_of_it(wire: Wire) -> None:
    """A frame that is refused as a whole is asked for in halves: here one session is what is wrong with it."""
    handles = wire.open(*"abcdefgh")
    wire.core.table.epoch[handles[3]] = TOP + 1
    wire.world.most_epoch = TOP
    wire.cut()
    wire.connect()
    steps = [wire.step(int(handle), np.ones((1, FEATURES))) for handle in handles]
    wire.settle()
    assert [step.error is None for step in steps] == [True, True, True, False, True, True, True, True]
    assert isinstance(steps[3].error, errors.BadFrame)


def test_a_rivals_step_is_heard_as_a_move_not_as_a_conflict(wire: Wire) -> None:
    (handle,) = wire.open("a")
    step = wire.step(handle, np.ones((1, FEATURES)))
    wire.world.apply("a", 0, 2 * np.ones((1, FEATURES), np.float32))
    wire.run()
    assert isinstance(step.error, errors.SessionMoved)
