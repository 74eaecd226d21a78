"""What is sent again to a server that lost it, what is kept for that, and when the state is lost."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from statestream import errors
from statestream.contract.tensors import read_handles, read_positions
from statestream.core import Group
from statestream.core.blocks import Block, Single
from statestream.core.table import Table
from statestream.v1 import inference_pb2 as pb
from tests.client.wire import Wire, make_core
from tests.client.world import FEATURES, MODEL, World


def test_replies_lost_with_the_stream_come_again(wire: Wire) -> None:
    handles = wire.open("a", "b")
    ticket = wire.pool(handles, np.ones((2, 1, FEATURES)), 1)
    wire.send()
    wire.serve()
    wire.cut()
    assert not ticket.done
    wire.connect()
    wire.run()
    assert ticket.value["y"][:, 0, 0].tolist() == [1, 1]
    assert wire.world.rows["a"].position == 1


def test_answered_steps_that_the_server_lost_are_replayed(wire: Wire) -> None:
    (handle,) = wire.open("a")
    for _ in range(3):
        wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    wire.world.save()
    for _ in range(3):
        wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    wire.cut()
    wire.world.restart()
    assert wire.world.rows["a"].position == 3
    wire.connect()
    wire.run()
    assert wire.world.rows["a"].position == 6
    last = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert last.value[0, 0] == 7


def test_what_waits_for_answers_waits_for_the_replay(wire: Wire) -> None:
    """A fork that left earlier would be made of the state that the server was left with."""
    (handle,) = wire.open("a")
    for _ in range(3):
        wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    wire.cut()
    wire.world.restart()
    wire.connect()
    ticket = wire.core.settle(np.array([handle]))
    while wire.send():
        assert not ticket.done
        wire.serve()
        assert not ticket.done
        wire.deliver()
    assert ticket.done
    assert wire.world.rows["a"].position == 3


def test_replies_to_a_replay_are_acknowledged_before_the_session_is_let_go(wire: Wire) -> None:
    """The server that lost the steps has no acknowledgement of them: else its next caller gets the replies again."""
    (handle,) = wire.open("a")
    wire.world.save()
    for _ in range(3):
        wire.step(handle, np.ones((1, FEATURES)))
        wire.run()
    wire.core.results.acks_due = True
    wire.core.table.unacked[handle] = wire.core.results.ack_after
    wire.run()
    wire.cut()
    wire.world.restart()
    wire.connect()
    wire.run()
    assert wire.world.rows["a"].position == 3
    closed = wire.core.close(np.array([handle]), delete=False)
    wire.run()
    assert closed.done
    assert not wire.world.rows["a"].replies


def test_a_replay_is_a_chunk_of_each_session_and_what_was_not_answered_goes_as_it_went(wire: Wire) -> None:
    handles = wire.open("a", "b", "c")
    wire.world.save()
    for _ in range(3):
        for handle in handles[:2]:
            wire.step(handle, np.ones((1, FEATURES)))
        wire.run()
    pool = wire.pool(handles, np.ones((3, 6, FEATURES)), 6)  # Two chunks of each session, at most 4 steps long.
    wire.send()
    wire.send()
    wire.serve()
    wire.cut()  # The server took the first, and nobody heard.
    wire.world.restart()
    wire.connect()
    while wire.send():
        pass
    wire.serve()
    wire.deliver()
    while wire.send():
        pass
    sent = [
        (read_handles(chunk.handles).tolist(), read_positions(chunk.positions, len(chunk.handles) // 4).tolist(), steps)
        for chunk in [request.chunk for request in wire.requests]
        for steps in [chunk.steps or read_handles(chunk.lengths).tolist()]
    ]
    assert sent[0] == ([0, 1], [0, 0], [3, 3])
    assert sorted(sent[1:]) == [([0, 1, 2], [3, 3, 0], 4), ([0, 1, 2], [7, 7, 4], 2)]
    wire.run()
    assert pool.value["y"][:, :, 0].tolist() == [[4, 5, 6, 7, 8, 9], [4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6]]


def test_initial_states_are_sent_again_for_a_session_that_was_never_saved() -> None:
    wire = Wire()
    wire.connect()
    ticket = wire.core.open(
        Group(MODEL, 0, False), ["a"], pb.OPEN_MODE_EITHER, {"h": np.full((1, FEATURES), 5, np.float32)}
    )
    wire.run()
    wire.step(int(ticket.handles[0]), np.ones((1, FEATURES)))
    wire.run()
    wire.cut()
    wire.world.restart(lose_everything=True)
    wire.connect()
    last = wire.step(int(ticket.handles[0]), np.ones((1, FEATURES)))
    wire.run()
    assert last.value[0, 0] == 7


def test_a_store_that_forgets_after_a_failover_gets_the_steps_again(wire: Wire) -> None:
    (handle,) = wire.open("a")
    for _ in range(2):
        wire.step(handle, np.ones((1, FEATURES)))
        wire.run()
    old = wire.world.rows["a"].copy()
    wire.world.save()
    wire.step(handle, np.ones((1, FEATURES)))
    wire.core.flush(np.array([handle]))
    wire.run()
    assert wire.core.table.durable[handle] == 3
    wire.cut()
    old.epoch = wire.world.rows["a"].epoch
    wire.world.saved["a"] = old
    wire.world.restart()
    wire.connect()
    last = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert last.value[0, 0] == 4


def test_without_durability_a_lost_server_is_state_lost_for_its_sessions_only() -> None:
    wire = Wire(World(pb.DURABILITY_MODE_NONE))
    wire.connect()
    used, fresh = wire.open("used", "fresh")
    wire.step(used, np.ones((1, FEATURES)))
    wire.run()
    wire.step(used, np.ones((1, FEATURES)))
    wire.run()
    wire.cut()
    wire.world.restart(lose_everything=True)
    wire.connect()
    wire.run()
    lost, fine = wire.step(used, np.ones((1, FEATURES))), wire.step(fresh, np.ones((1, FEATURES)))
    wire.run()
    assert isinstance(lost.error, errors.StateLost)
    assert fine.value[0, 0] == 1


def test_without_durability_another_server_has_another_session_even_at_the_same_position() -> None:
    """Two servers with a memory of their own, which several clients use: the one found there is somebody else's."""
    wire = Wire(World(pb.DURABILITY_MODE_NONE))
    wire.connect()
    used, begun = wire.open("used", "begun")
    wire.step(used, np.ones((1, FEATURES)))
    wire.run()
    begins = wire.step(begun, np.ones((1, FEATURES)))
    wire.send()
    wire.cut()
    other = Wire(World(pb.DURABILITY_MODE_NONE), make_core())
    other.world.lives = 2
    other.connect()
    other.step(other.open("used").item(), np.full((1, FEATURES), 5))
    other.run()
    wire.world = other.world
    wire.connect()
    wire.run()
    lost = wire.step(used, np.ones((1, FEATURES)))
    wire.run()
    assert isinstance(lost.error, errors.StateLost)
    assert other.world.rows["used"].position == 1
    assert begins.value[0, 0] == 1


def test_a_session_whose_steps_end_one_stream_after_the_other_fails_though_others_go_on(wire: Wire) -> None:
    bad, good = wire.open("bad", "good")
    fatal = wire.step(bad, np.ones((1, FEATURES)))
    for n in range(1, 6):
        assert not fatal.done
        assert wire.core.next_request(0.0) is not None  # The server takes it and is gone, once others are answered.
        fine = wire.step(good, np.ones((1, FEATURES)))
        wire.run()
        assert fine.value[0, 0] == n
        wire.cut(errors.InternalError("a fault"))
        wire.connect()
        wire.send()
        wire.serve()
        wire.deliver()
    assert isinstance(fatal.error, errors.InternalError)
    assert "a fault" in fatal.error.message
    last = wire.step(good, np.ones((1, FEATURES)))
    wire.run()
    assert last.value[0, 0] == 6


def test_give_up_fails_what_is_unknown_and_leaves_the_rest(wire: Wire) -> None:
    busy, idle = wire.open("busy", "idle")
    ticket = wire.step(busy, np.ones((1, FEATURES)))
    wire.send()
    wire.cut()
    wire.core.give_up(errors.ServerUnavailable("gone"))
    assert isinstance(ticket.error, errors.ServerUnavailable)
    assert "position 0" in ticket.error.message
    wire.connect()
    wire.run()
    assert wire.step(busy, np.ones((1, FEATURES))).error is not None
    fine = wire.step(idle, np.ones((1, FEATURES)))
    wire.run()
    assert fine.error is None


def test_a_full_buffer_asks_for_a_flush_and_holds_back() -> None:
    wire = Wire(core=make_core(replay_buffer_bytes=2000, keep_seconds=0.0))
    wire.connect()
    (handle,) = wire.open("a")
    tickets = [wire.step(handle, np.ones((1, FEATURES))) for _ in range(50)]
    for _ in range(200):
        wire.run()
        assert wire.core.buffer.bytes <= 2600
        wire.now += 1.0
    assert [float(ticket.value[0, 0]) for ticket in tickets] == list(range(1, 51))
    assert "flush" in wire.world.frames


def test_a_full_buffer_may_lose_by_choice() -> None:
    wire = Wire(core=make_core(replay_buffer_bytes=2000, keep_seconds=0.0, lose_when_full=True))
    wire.connect()
    (handle,) = wire.open("a")
    for _ in range(50):
        wire.step(handle, np.ones((1, FEATURES)))
        wire.run()
    assert "flush" not in wire.world.frames
    wire.cut()
    wire.world.restart(lose_everything=True)
    wire.connect()
    wire.run()
    assert isinstance(wire.step(handle, np.ones((1, FEATURES))).error, errors.StateLost)


@pytest.mark.parametrize("lose_when_full", [False, True])
def test_a_full_buffer_is_not_gone_through_at_every_turn(lose_when_full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for room asks for it at every turn; a buffer of small steps has a hundred thousand blocks."""
    wire = Wire(core=make_core(replay_buffer_bytes=100_000, keep_seconds=0.0, lose_when_full=lose_when_full))
    wire.connect()
    handles = wire.open(*(f"s{number}" for number in range(100)))
    while wire.core.buffer.bytes < 99_000:
        wire.step(handles[0], np.ones((1, FEATURES)))
        wire.run()
    blocks, looks = len(wire.core.buffer), list[Block]()

    def counted(told: Callable[[Any, Table], bool]) -> Callable[[Any, Table], bool]:
        def is_durable(block: Block, table: Table) -> bool:
            looks.append(block)
            return told(block, table)

        return is_durable

    for kind in (Block, Single):
        monkeypatch.setattr(kind, "is_durable", counted(kind.is_durable))
    tickets = []
    for handle in handles:
        tickets.append(wire.step(handle, np.ones((1, FEATURES))))
        wire.send()
    assert len(looks) < 3 * blocks
    for _ in range(5):
        wire.run()
        wire.now += 1.0
    assert all(ticket.done and ticket.error is None for ticket in tickets)


def test_a_buffer_that_is_full_takes_what_is_behind_a_session_that_failed() -> None:
    """Nobody saves what is kept of it; its room is there at the next turn."""
    wire = Wire(core=make_core(replay_buffer_bytes=2000, keep_seconds=0.0))
    wire.connect()
    lost, other = wire.open("a", "b")
    while wire.core.buffer.admits(600):
        wire.step(lost, np.ones((1, FEATURES)))
        wire.run()
    ticket = wire.step(other, np.ones((1, FEATURES)))
    wire.send()
    assert not ticket.framed
    wire.core.log.fail(lost, errors.SessionMoved("somebody has it"))
    wire.run()
    assert ticket.value[0, 0] == 1


def test_durable_positions_that_come_unasked_free_the_buffer() -> None:
    wire = Wire(core=make_core(keep_seconds=0.0))
    wire.connect()
    (handle,) = wire.open("a")
    wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert wire.core.buffer.bytes > 0
    push = pb.DurableFrame(
        handles=np.array([handle, 7], "<u4").tobytes(), durable_positions=np.array([1, 5], "<u8").tobytes()
    )
    wire.core.receive(pb.StreamResponse(durable=push), 0.0)
    wire.core.buffer.advance(0.0)
    assert wire.core.table.durable[handle] == 1
    assert wire.core.buffer.bytes == 0


def test_many_blocks_that_become_durable_at_once_leave_a_few_with_every_answer(wire: Wire) -> None:
    """An answer does not wait until a second's blocks are dropped; the next ones drop them."""
    wire.core.buffer.keep_seconds = 0.0
    (handle,) = wire.open("a")
    for _ in range(300):
        wire.step(handle, np.ones((1, FEATURES)))
        wire.run()
    wire.world.save()
    left = list[int]()
    for _ in range(6):
        wire.step(handle, np.ones((1, FEATURES)))
        wire.run()
        left.append(len(wire.core.buffer))
    assert left == [301 - 64, 302 - 128, 303 - 192, 304 - 256, 5, 6]


def test_closing_frees_handles_only_when_no_buffered_chunk_names_them() -> None:
    wire = Wire(core=make_core(keep_seconds=10.0))
    wire.connect()
    handles = wire.open("a", "b")
    wire.pool(handles, np.ones((2, 1, FEATURES)), 1)
    ticket = wire.core.close(handles, delete=False)
    wire.run()
    assert ticket.done
    assert not set(wire.open("c", "d").tolist()) & set(handles.tolist())
    wire.now = 100.0
    wire.core.buffer.advance(100.0)
    wire.core.buffer.advance(200.0)
    assert set(wire.open("e", "f").tolist()) == set(handles.tolist())


def test_what_is_kept_for_replay_keeps_nothing_of_the_callers(wire: Wire) -> None:
    handles = wire.open("a", "b")
    outputs = [wire.step(handle, np.ones((1, FEATURES))) for handle in handles]
    wire.run()
    kept = [weakref.ref(ticket.value) for ticket in outputs]
    pool = wire.pool(handles, np.ones((2, 1, FEATURES)), 1)
    wire.run()
    kept.append(weakref.ref(pool.value["y"]))
    assert len(wire.core.buffer) == 2
    del outputs, pool
    assert [value() for value in kept] == [None] * 3
