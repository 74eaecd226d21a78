"""The stream core against a server in memory: exactly once, in order, whatever happens to the stream."""

from __future__ import annotations

import random
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream import errors
from statestream.core import Group, Lane, PoolTicket, State, StepTicket, StreamCore
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError
from tests.client.world import FEATURES, MODEL, Stream, World, split

LANE = Lane(MODEL, 1, ("x",), ("float32",), ((FEATURES,),), 4 * FEATURES)


def make_core(**kwargs: object) -> StreamCore:
    return StreamCore(bytes(16), 1000, **kwargs)  # type: ignore[arg-type]


class Wire:
    """A core and a world, joined by a stream that a test can cut."""

    def __init__(self, world: World | None = None, core: StreamCore | None = None) -> None:
        self.world = world or World()
        self.core = core or make_core()
        self.now = 0.0
        self.requests: list[pb.StreamRequest] = []
        self.responses: list[pb.StreamResponse] = []
        self.stream: Stream | None = None

    def connect(self) -> None:
        self.stream = Stream(self.world)
        self.core.connected(self.world.limits, self.world.durability)

    def cut(self, fault: errors.StatestreamError | None = None) -> None:
        self.stream = None
        self.requests.clear()
        self.responses.clear()
        self.core.disconnected(fault)

    def send(self) -> bool:
        request = self.core.next_request(self.now)
        if request is not None:
            self.requests.append(pb.StreamRequest.FromString(request.SerializeToString()))
        return request is not None

    def serve(self) -> bool:
        if not self.requests or self.stream is None:
            return False
        self.responses += self.stream.receive(self.requests.pop(0))
        return True

    def deliver(self) -> bool:
        if not self.responses:
            return False
        self.core.receive(self.responses.pop(0), self.now)
        return True

    def run(self) -> None:
        """Until nothing moves."""
        while self.send() or self.serve() or self.deliver():
            pass

    def open(self, *ids: str, mode: pb.OpenMode = pb.OPEN_MODE_EITHER, ephemeral: bool = False) -> np.ndarray:
        ticket = self.core.open(Group(MODEL, 0, ephemeral), list(ids), mode)
        self.run()
        assert ticket.done
        if ticket.errors:
            raise next(iter(ticket.errors.values()))
        return ticket.handles

    def step(self, handle: int, x: np.ndarray) -> StepTicket:
        x = np.asarray(x, np.float32).reshape(-1, FEATURES)
        ticket = StepTicket(LANE, int(handle), (x.tobytes(),), len(x), single=False)
        self.core.step(ticket)
        return ticket

    def pool(self, handles: np.ndarray, x: np.ndarray, lengths: np.ndarray | int) -> PoolTicket:
        ticket = PoolTicket(LANE, handles, (np.asarray(x, np.float32).tobytes(),), lengths, x.shape[1])
        self.core.step(ticket)
        return ticket


@pytest.fixture
def wire() -> Wire:
    wire = Wire()
    wire.connect()
    return wire


def test_single_steps_that_wait_share_one_frame(wire: Wire) -> None:
    handles = wire.open(*[str(n) for n in range(100)])
    wire.world.frames.clear()
    tickets = [wire.step(handle, np.full((1, FEATURES), n)) for n, handle in enumerate(handles)]
    wire.run()
    assert wire.world.frames == ["chunk"]
    assert [float(ticket.value[0, 0]) for ticket in tickets] == list(range(100))


def test_a_crowd_on_an_idle_stream_leaves_in_two_halves_and_then_as_it_is_answered(wire: Wire) -> None:
    handles = wire.open(*[str(n) for n in range(256)])
    wire.world.frames.clear()
    for handle in handles:
        wire.step(handle, np.ones((1, FEATURES)))
    assert [wire.send(), wire.send(), wire.send()] == [True, True, False]
    wire.serve()
    wire.deliver()
    for handle in handles[:128]:
        wire.step(handle, np.ones((1, FEATURES)))
    assert [wire.send(), wire.send()] == [True, False]
    wire.run()
    assert wire.core.table.answered[handles].tolist() == [2] * 128 + [1] * 128


def test_steps_of_one_session_keep_their_order_and_take_a_frame_each(wire: Wire) -> None:
    (handle,) = wire.open("a")
    tickets = [wire.step(handle, np.ones((n % 3 + 1, FEATURES))) for n in range(20)]
    wire.run()
    ends = np.cumsum([n % 3 + 1 for n in range(20)])
    assert [float(ticket.value[-1, 0]) for ticket in tickets] == ends.tolist()
    assert wire.world.frames.count("chunk") == 20


def test_of_steps_that_wait_only_the_last_is_dropped_when_cancelled(wire: Wire) -> None:
    (handle,) = wire.open("a")
    tickets = [wire.step(handle, np.ones((1, FEATURES))) for _ in range(4)]
    wire.core.cancel(tickets[3])
    wire.core.cancel(tickets[1])  # One is behind it: it runs, and nobody hears.
    late = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert late.value[0, 0] == wire.world.rows["a"].position == 4
    assert not wire.core.busy
    alone = wire.step(handle, np.ones((1, FEATURES)))
    wire.core.cancel(alone)
    assert not wire.core.busy
    assert wire.core.table.next[handle] == 4


def test_single_steps_behind_a_pool_and_a_pool_behind_them_keep_their_order(wire: Wire) -> None:
    handles = wire.open("a", "b")
    first = wire.pool(handles, np.ones((2, 9, FEATURES)), 9)
    singles = [wire.step(handles[0], np.ones((1, FEATURES))) for _ in range(3)]
    last = wire.pool(handles, np.ones((2, 1, FEATURES)), 1)
    wire.run()
    assert first.value["y"][:, -1, 0].tolist() == [9, 9]
    assert [float(ticket.value[0, 0]) for ticket in singles] == [10, 11, 12]
    assert last.value["y"][:, 0, 0].tolist() == [13, 10]


def test_a_pool_step_is_one_frame_and_ragged_rows_keep_zeros_past_their_end(wire: Wire) -> None:
    handles = wire.open("a", "b", "c")
    wire.world.frames.clear()
    x = np.ones((3, 3, FEATURES))
    ticket = wire.pool(handles, x, np.array([3, 1, 0]))
    wire.run()
    assert ticket.done
    assert not ticket.errors
    assert ticket.value["y"][:, :, 0].tolist() == [[1, 2, 3], [1, 0, 0], [0, 0, 0]]
    assert wire.world.frames == ["chunk"]


def test_an_answer_in_pieces_is_put_together_in_any_order(wire: Wire) -> None:
    handles = wire.open(*"abcdef")
    x = np.arange(6 * 2 * FEATURES).reshape(6, 2, FEATURES)
    ticket = wire.pool(handles, x, 2)
    wire.send()
    wire.serve()
    (whole,) = wire.responses
    wire.responses = split(whole, 2)
    for part in wire.responses:
        part.frame = whole.frame
    wire.deliver()
    assert not ticket.done
    assert wire.core.table.answered[handles].tolist() == [0, 0, 2, 2, 2, 2]
    wire.run()
    np.testing.assert_array_equal(ticket.value["y"], np.cumsum(x, axis=1))


def test_a_long_pool_sequence_is_cut_at_the_limit_and_joined(wire: Wire) -> None:
    handles = wire.open("a", "b")
    x = np.random.default_rng(1).integers(0, 9, (2, 11, FEATURES)).astype(np.float32)
    ticket = wire.pool(handles, x, 11)
    wire.run()
    np.testing.assert_array_equal(ticket.value["y"], np.cumsum(x, axis=1))
    assert wire.core.table.answered[handles].tolist() == [11, 11]


def test_a_refused_chunk_fails_those_behind_it_and_the_session_goes_on(wire: Wire) -> None:
    (handle,) = wire.open("a")
    good = wire.step(handle, np.ones((1, FEATURES)))
    bad = wire.step(handle, np.full((1, FEATURES), np.nan))
    late = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert good.error is None
    assert isinstance(bad.error, errors.NonFiniteState)
    assert isinstance(late.error, errors.NonFiniteState)
    assert "before this one" in late.error.message
    again = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert again.value[0, 0] == 2
    assert wire.core.table.stale[handle] == 0


def test_a_bad_row_leaves_its_neighbours_alone(wire: Wire) -> None:
    handles = wire.open("a", "b", "c")
    x = np.ones((3, 1, FEATURES), np.float32)
    x[1] = np.nan
    ticket = wire.pool(handles, x, 1)
    wire.run()
    assert list(ticket.errors) == [1]
    assert ticket.value["y"][:, 0, 0].tolist() == [1, 0, 1]
    assert wire.core.table.next[handles].tolist() == [1, 0, 1]


def test_a_chunk_refused_for_a_while_is_sent_again_by_itself(wire: Wire) -> None:
    (handle,) = wire.open("a")
    wire.world.refuse.append(errors.Overloaded("full", retry_after=2.0))
    tickets = [wire.step(handle, np.ones((1, FEATURES))) for _ in range(4)]
    wire.run()
    assert not any(ticket.done for ticket in tickets)
    assert wire.core.due() == 2.0
    wire.now = 2.0
    wire.run()
    assert [float(ticket.value[0, 0]) for ticket in tickets] == [1, 2, 3, 4]


def test_a_step_too_large_for_a_message_is_refused_here(wire: Wire) -> None:
    (handle,) = wire.open("a")
    lane = Lane(MODEL, 1, ("x",), ("float32",), ((2 << 20,),), 8 << 20)
    ticket = StepTicket(lane, int(handle), (bytes(8 << 20),), 1, single=True)
    wire.core.step(ticket)
    assert isinstance(ticket.error, errors.BadTensor)
    assert "8,388,608 bytes" in ticket.error.message


def test_a_chunk_refused_for_too_long_is_the_callers_to_know() -> None:
    wire = Wire(core=make_core(retry_seconds=5.0))
    wire.connect()
    (handle,) = wire.open("a")
    ticket = wire.step(handle, np.ones((1, FEATURES)))
    while not ticket.done and wire.now < 60:
        wire.world.refuse = [errors.StoreUnavailable("away", retry_after=1.0)]
        wire.run()
        wire.now += 1.0
    assert isinstance(ticket.error, errors.StoreUnavailable)
    assert 5.0 <= wire.now <= 8.0
    wire.world.refuse.clear()
    assert wire.core.table.next[handle] == 0
    good = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert good.value[0, 0] == 1


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


def test_a_close_of_very_many_sessions_is_several_frames(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    monkeypatch.setattr("statestream.core.controls.FRAME_SESSIONS", 4)
    handles = wire.open(*"abcdefghij")
    wire.world.frames.clear()
    ticket = wire.core.close(handles, delete=True)
    wire.run()
    assert ticket.done
    assert wire.world.frames == ["close"] * 3
    assert not wire.world.rows


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


def test_cancelling_drops_only_a_chunk_with_nothing_behind_it(wire: Wire) -> None:
    (handle,) = wire.open("a")
    kept, dropped = wire.step(handle, np.ones((1, FEATURES))), wire.step(handle, np.ones((1, FEATURES)))
    wire.core.cancel(dropped)
    wire.core.cancel(kept)
    behind = wire.step(handle, np.full((1, FEATURES), 10))
    wire.run()
    assert behind.value[0, 0] == 10
    first, second = wire.step(handle, np.ones((1, FEATURES))), wire.step(handle, np.ones((1, FEATURES)))
    wire.core.cancel(first)
    wire.run()
    assert second.value[0, 0] == 12


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


def test_a_go_away_stops_new_frames_and_drains(wire: Wire) -> None:
    (handle,) = wire.open("a")
    first = wire.step(handle, np.ones((1, FEATURES)))
    wire.send()
    wire.core.receive(pb.StreamResponse(go_away=pb.GoAwayFrame()), 0.0)
    second = wire.step(handle, np.ones((1, FEATURES)))
    assert not wire.core.drained
    wire.serve()
    wire.deliver()
    assert first.done
    assert wire.core.drained
    assert not wire.send()
    wire.cut()
    wire.connect()
    wire.run()
    assert second.value[0, 0] == 2


def test_an_idle_session_acknowledges_once_enough_replies_are_in(wire: Wire) -> None:
    (handle,) = wire.open("a")
    for _ in range(8):
        wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert len(wire.world.rows["a"].replies) < 8


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


def notice(handle: int, error: errors.StatestreamError) -> pb.StreamResponse:
    row = RowError(handle=handle, status=errors.to_status(error))
    return pb.StreamResponse(notice=pb.NoticeFrame(errors=[row]))


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


def test_a_frame_refused_as_a_whole_fails_its_chunks_only(wire: Wire) -> None:
    first, second = wire.open("a", "b")
    bad, good = wire.step(first, np.ones((1, FEATURES))), wire.step(second, np.ones((1, FEATURES)))
    request = wire.core.next_request(0.0)
    assert request is not None
    status = errors.to_status(errors.BadFrame("unreadable", metadata={"field": "inputs"}))
    wire.core.receive(pb.StreamResponse(frame=request.frame, refused=pb.RefusedFrame(status=status)), 0.0)
    assert isinstance(bad.error, errors.BadFrame)
    assert isinstance(good.error, errors.BadFrame)
    again = wire.step(first, np.ones((1, FEATURES)))
    wire.run()
    assert again.value[0, 0] == 1


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
    assert wire.core.table.durable[handle] == 1
    assert wire.core.buffer.bytes == 0


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


@dataclass
class Caller:
    """One session's caller: what it sent, and what it got."""

    handle: int
    sent: list[np.ndarray] = field(default_factory=list)
    got: list[tuple[int, StepTicket | PoolTicket, int]] = field(default_factory=list)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), durability=st.sampled_from([pb.DURABILITY_MODE_INTERVAL, pb.DURABILITY_MODE_SYNC]))
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
    assert not wire.core.chunks.unsent
    assert not wire.core.chunks.in_flight
    assert not wire.core.chunks.bytes_in_flight
    assert (wire.core.table.state[handles] == State.OPEN).all()
    wire.world.save()
    flush = wire.core.flush(handles)
    wire.run()
    assert flush.done
    wire.core.buffer.make_room(1 << 40, lose=False)
    assert wire.core.buffer.bytes == 0


def test_frames_of_a_crowd_are_as_few_after_many_reconnects_as_before(wire: Wire) -> None:
    handles = wire.open(*[str(n) for n in range(64)])
    for _ in range(20):
        for handle in handles:
            wire.step(handle, np.ones((1, FEATURES)))
        wire.send()
        wire.cut()
        wire.connect()
        wire.run()
    assert wire.core.chunks.sessions_in_flight == 0
    first = [wire.step(handle, np.ones((1, FEATURES))) for handle in handles[:48]]
    assert wire.send()
    wire.step(handles[48], np.ones((1, FEATURES)))
    assert wire.send()  # The second frame leaves at once, however small it is.
    wire.step(handles[49], np.ones((1, FEATURES)))
    assert not wire.send()  # A third one waits: 48 answers are coming.
    wire.run()
    assert all(ticket.done for ticket in first)


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
