"""Opening and closing in the core: many at once in few frames, and replies that come again."""

from __future__ import annotations

import numpy as np
import pytest

from statestream import errors
from statestream.core import Group, OpenTicket, StreamCore
from statestream.v1 import inference_pb2 as pb
from tests.client.wire import Wire, make_core
from tests.client.world import FEATURES, MODEL, Row, World

EITHER = pb.OPEN_MODE_EITHER
ONE = np.ones((1, FEATURES), np.float32)


def ask(wire: Wire, *ids: str, mode: pb.OpenMode = EITHER, replies: bool = False) -> OpenTicket:
    return wire.core.open(Group(MODEL, 0, False), list(ids), mode, replies=replies)


def test_opens_flushes_and_closes_that_wait_share_a_frame_each(wire: Wire) -> None:
    tickets = [ask(wire, f"s{n}") for n in range(1024)]
    wire.run()
    assert all(ticket.done and not ticket.errors and ticket.created[0] for ticket in tickets)
    assert wire.world.frames == ["open"]
    assert {int(ticket.handles[0]) for ticket in tickets} == set(range(1024))
    flushes = [wire.core.flush(ticket.handles) for ticket in [*tickets, tickets[0]]]
    wire.run()
    closes = [wire.core.close(ticket.handles, delete=n % 2 == 0) for n, ticket in enumerate(tickets)]
    wire.run()
    assert all(control.done and not control.errors for control in [*flushes, *closes])
    assert wire.world.frames == ["open", "flush", "close", "close"]
    assert len(wire.world.rows) == 512


def test_a_session_that_is_closed_twice_is_free_once(wire: Wire) -> None:
    (handle,) = wire.open("a")
    handles = np.array([handle])
    closes = [wire.core.close(handles, delete=False), wire.core.close(handles, delete=False)]
    wire.send()
    closes.append(wire.core.close(handles, delete=True))
    wire.run()
    assert all(ticket.done for ticket in closes)
    assert not closes[0].errors
    # What is let go is not deleted any more.
    assert isinstance(closes[2].errors[handle], errors.Closed)
    one, two = wire.open("b"), wire.open("c")
    assert one[0] != two[0]


def test_of_opens_in_one_frame_each_caller_hears_of_its_own(wire: Wire) -> None:
    wire.open("taken")
    taken, free = ask(wire, "taken", mode=pb.OPEN_MODE_CREATE), ask(wire, "free", mode=pb.OPEN_MODE_CREATE)
    missing = ask(wire, "missing", mode=pb.OPEN_MODE_RESUME)
    wire.run()
    assert wire.world.frames == ["open", "open", "open"]
    assert isinstance(taken.errors[0], errors.SessionExists)
    assert not free.errors
    assert isinstance(missing.errors[0], errors.SessionNotFound)


def test_joined_opens_survive_the_loss_of_their_stream(wire: Wire) -> None:
    tickets = [ask(wire, f"s{n}", mode=pb.OPEN_MODE_CREATE) for n in range(5)]
    wire.send()
    wire.serve()
    wire.cut()
    wire.connect()
    wire.run()
    assert all(ticket.done and not ticket.errors for ticket in tickets)


def test_a_first_open_that_is_sent_again_is_the_newer_claim(wire: Wire) -> None:
    """The first try may still be on its way, and must not take the session from the second."""
    ask(wire, "a")
    wire.send()
    first = wire.requests[0].open.incarnation
    wire.cut()
    wire.connect()
    wire.send()
    assert wire.requests[0].open.incarnation > first


def test_who_opens_on_a_server_that_leaves_asks_the_next_one_at_once(wire: Wire) -> None:
    (old,) = wire.open("a")
    wire.world.unsaid = [errors.Draining("the server is leaving", retry_after=60.0)]
    ticket = wire.core.open(Group(MODEL, 0, False), ["b"], pb.OPEN_MODE_CREATE)
    wire.run()
    assert not ticket.done
    assert wire.core.drained, "the stream is of no use to who waits"
    wire.cut()
    wire.connect()
    wire.run()
    assert not ticket.errors
    assert ticket.done
    wire.step(old, np.ones((1, FEATURES)))
    wire.run()
    assert wire.world.rows["a"].position == 1


def test_an_open_that_the_store_left_undone_is_asked_for_again_as_the_newer_claim(wire: Wire) -> None:
    """The store may do it yet, for a server that is left meanwhile: it must not take the session from the second."""
    wire.world.unsaid = [errors.StoreUnavailable("away", retry_after=1.0)]
    ticket = ask(wire, "a")
    wire.send()
    first = wire.requests[0].open.incarnation
    wire.run()
    assert not ticket.done
    wire.cut()
    wire.connect()
    wire.now += 2.0
    wire.send()
    assert wire.requests[0].open.incarnation > first
    wire.run()
    assert ticket.done
    assert not ticket.errors


def test_an_open_that_the_store_never_does_fails_with_the_stores_reason() -> None:
    """Not as one that the server did not answer: it did, again and again."""
    wire = Wire(core=make_core(retry_seconds=2.0))
    wire.connect()
    ticket = ask(wire, "a")
    while not ticket.done and wire.now < 60:
        wire.world.unsaid = [errors.StoreUnavailable("a page is damaged")]
        wire.run()
        wire.core.check(wire.now)
        wire.now += 0.1
    assert isinstance(ticket.errors[0], errors.StoreUnavailable)
    assert wire.now <= 2.5


def test_an_open_that_is_outbid_until_time_is_over_hears_of_it() -> None:
    """Not that the server did not answer: it did, and the caller is the one who held back."""
    wire = Wire(core=make_core(retry_seconds=2.0))
    wire.connect()
    ticket = ask(wire, "a")
    while not ticket.done and wire.now < 60:
        wire.world.unsaid = [errors.SessionMoved("a newer writer opened the session meanwhile")] * 2
        wire.run()
        wire.core.check(wire.now)
        wire.now += 0.1
    assert isinstance(ticket.errors[0], errors.SessionMoved)
    assert wire.now <= 2.5


def test_what_a_server_made_that_could_not_say_so_is_found_and_is_the_callers_own(wire: Wire) -> None:
    """A store that fails behind its write: the second try finds a session that exists, and made it."""
    wire.world.unsaid = [errors.StoreUnavailable("the store failed")]
    ticket = wire.core.open(Group(MODEL, 0, False), ["a"], pb.OPEN_MODE_CREATE)
    wire.settle()
    assert not ticket.errors
    assert ticket.created[0]
    assert wire.world.frames == ["open"] * 3
    taken = wire.core.open(Group(MODEL, 0, False), ["b"], pb.OPEN_MODE_CREATE)
    wire.world.rows["b"] = Row(1, b"somebody", 1, False)
    wire.world.refuse = [errors.StoreUnavailable("the store failed")]
    wire.settle()
    assert isinstance(taken.errors[0], errors.SessionExists)


def test_start_values_are_cut_at_the_size_of_a_frame(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    monkeypatch.setattr("statestream.core.opening.FRAME_BYTES", 4 * 4 * FEATURES)
    values = np.arange(10 * FEATURES, dtype=np.float32).reshape(10, FEATURES)
    ticket = wire.core.open(Group(MODEL, 0, False), [f"s{n}" for n in range(10)], EITHER, {"h": values})
    wire.run()
    assert ticket.done
    assert wire.world.frames == ["open"] * 3
    assert wire.world.rows["s9"].state.tolist() == values[9].tolist()


@pytest.fixture
def orphan() -> World:
    """A session at position 6 whose caller is gone and has acknowledged 2 steps."""
    world = World()
    first = Wire(world)
    first.connect()
    (handle,) = first.open("a")
    for _ in range(3):
        first.step(handle, np.ones((2, FEATURES)))
    while first.send():
        pass
    while first.serve():
        pass
    del world.rows["a"].replies[0]
    world.frames.clear()
    return world


def test_kept_replies_come_on_request_and_are_acknowledged_once_they_are_taken(orphan: World) -> None:
    wire = Wire(orphan, StreamCore(b"2" * 16, 2000))
    wire.connect()
    ticket, fresh = ask(wire, "a", "b", replies=True), ask(wire, "c", replies=True)
    wire.run()
    assert ticket.done
    assert fresh.done
    assert list(ticket.replies) == [0]
    assert [(start, y["y"][:, 0].tolist()) for start, y in ticket.replies[0]] == [(2, [3, 4]), (4, [5, 6])]
    step = wire.step(int(ticket.handles[0]), ONE)
    wire.run()
    assert step.value[0, 0] == 7
    assert sorted(orphan.rows["a"].replies) == [2, 4, 6]
    wire.core.results.received(ticket.handles)
    wire.run()
    assert not orphan.rows["a"].replies


def test_replies_lost_with_the_stream_are_asked_for_again(orphan: World) -> None:
    wire = Wire(orphan, StreamCore(b"2" * 16, 2000))
    wire.connect()
    ticket = ask(wire, "a", replies=True)
    wire.send()
    wire.serve()
    wire.deliver()
    assert not ticket.done
    assert wire.core.busy
    wire.cut()
    wire.connect()
    wire.run()
    assert [start for start, _ in ticket.replies[0]] == [2, 4]
    wire.cut()
    wire.connect()
    wire.run()
    assert sorted(orphan.rows["a"].replies) == [2, 4]


def test_a_caller_that_waits_for_replies_in_vain_is_told(orphan: World) -> None:
    wire = Wire(orphan, StreamCore(b"2" * 16, 2000))
    wire.connect()
    ticket = ask(wire, "a", replies=True)
    wire.send()
    wire.serve()
    wire.deliver()
    wire.core.give_up(errors.ServerUnavailable("gone"))
    assert isinstance(ticket.errors[0], errors.ServerUnavailable)
    assert not wire.core.busy


def move(wire: Wire, *ids: str, version: int = 2) -> OpenTicket:
    return wire.core.open(Group(MODEL, version, False), list(ids), EITHER, upgrade=True)


def opens(wire: Wire) -> list[tuple[int, bool]]:
    """Sends what waits; version and `upgrade` of each open frame."""
    while wire.send():
        pass
    return [(request.open.version, request.open.upgrade) for request in wire.requests]


def test_a_move_whose_answer_is_lost_is_asked_for_again_and_once(wire: Wire) -> None:
    """The library asks for it until it is answered; from then on it opens the session in its new version."""
    (handle,) = wire.open("a")
    wire.step(handle, ONE)
    wire.core.close(np.array([handle]), delete=False)
    wire.run()
    ticket = move(wire, "a")
    wire.send()
    assert wire.requests[0].open.upgrade
    wire.serve()
    wire.cut()
    assert wire.world.rows["a"].version == 2
    wire.connect()
    assert sorted(opens(wire)) == [(2, True)]
    wire.run()
    assert (ticket.versions[0], ticket.created[0]) == (2, False)
    step = wire.step(int(ticket.handles[0]), ONE)
    wire.run()
    assert step.value[0, 0] == 11
    wire.cut()
    wire.world.restart()
    wire.connect()
    assert (2, False) in opens(wire)
    wire.run()
    again = wire.step(int(ticket.handles[0]), ONE)
    wire.run()
    assert again.value[0, 0] == 21


def test_openings_that_move_and_those_that_do_not_leave_apart(wire: Wire) -> None:
    wire.core.close(wire.open("a", "b", "c"), delete=False)
    wire.run()
    wire.world.frames.clear()
    tickets = [move(wire, "a"), wire.core.open(Group(MODEL, 2, False), ["b"], EITHER), move(wire, "c")]
    wire.run()
    assert wire.world.frames == ["open"] * 2
    assert [ticket.versions[0] for ticket in tickets] == [2, 0, 2]
    assert isinstance(tickets[1].errors[0], errors.ModelChanged)


def test_a_move_that_waits_for_kept_replies_is_asked_for_again(orphan: World) -> None:
    wire = Wire(orphan, StreamCore(b"2" * 16, 2000))
    wire.connect()
    ticket = wire.core.open(Group(MODEL, 2, False), ["a"], EITHER, replies=True, upgrade=True)
    wire.send()
    wire.serve()
    wire.deliver()
    wire.cut()
    wire.connect()
    wire.run()
    assert ticket.versions[0] == 2
    assert [start for start, _ in ticket.replies[0]] == [2, 4]
