"""Calls without a session on a stream: which share a frame, what becomes of them when it breaks, who is told what."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream import errors
from statestream.contract.partial import PART, Cut, Partial
from statestream.contract.tensors import from_tensor, to_tensor
from statestream.core import PredictKind, PredictTicket, StreamCore
from statestream.v1 import inference_pb2 as pb
from statestream.v1.server_pb2 import Limits
from statestream.v1.tensor_pb2 import RowError, Tensor

LIMITS = Limits(max_message_bytes=16 << 20, max_frame_calls=100, max_window_bytes=64 << 20)


def kind_of(width: int = 2, model: str = "double") -> PredictKind:
    return PredictKind(model, 0, ("x",), ("float32",), ((width,),), (), True, 4 * width, 4 * width)


KIND = kind_of()


def call(core: StreamCore, *values: float, kind: PredictKind = KIND) -> PredictTicket:
    """Asks for one row for each value."""
    x = np.repeat(np.array(values, np.float32)[:, np.newaxis], kind.shapes[0][0], 1)
    ticket = PredictTicket(kind, (x.tobytes(),), len(values))
    core.predict(ticket)
    return ticket


class Peer:
    """A server that doubles, as the page of the protocol says."""

    def __init__(self, core: StreamCore, limits: Limits = LIMITS) -> None:
        self.core = core
        self.limits = limits
        self.now = 0.0
        self.requests: list[pb.StreamRequest] = []
        self.connect()

    def connect(self) -> None:
        self.partial: tuple[int, Partial] | None = None
        self.core.connected(self.limits, pb.DURABILITY_MODE_NONE, self.now)

    def take(self) -> list[pb.StreamRequest]:
        """What leaves now, as it travels."""
        taken = []
        while (request := self.core.next_request(self.now)) is not None:
            taken.append(pb.StreamRequest.FromString(request.SerializeToString()))
        self.requests += taken
        return taken

    def answer(self, request: pb.StreamRequest, cuts: tuple[int, ...] = (), parts: bool = False) -> None:
        """Answers a frame; in several, cut before the calls in `cuts`."""
        if request.HasField("part"):
            assert self.partial is not None
            assert self.partial[0] == request.frame
            if not self.partial[1].put(request.part):
                return
            x = self.partial[1].arrays["x"]
            rows = [len(x)]
        elif request.predict.parts:
            self.partial = request.frame, Partial(request.predict.inputs, "input")
            return
        else:
            x = from_tensor(request.predict.inputs[0])
            rows = np.frombuffer(request.predict.rows, "<u4").tolist() or [len(x)]
        edges = [0, *sorted({cut % len(rows) for cut in cuts} - {0}), len(rows)]
        pieces = [*itertools.pairwise(edges)][::-1]
        for low, high in pieces:
            y = 2 * x[sum(rows[:low]) : sum(rows[:high])]
            if parts and high - low == 1:
                cut = Cut(["y"], [y])
                for number in range(cut.count):
                    part = cut.part(number)
                    part.handle, part.version = low, 1
                    if not number:
                        part.outputs.extend(cut.tensors())
                    self.core.receive(pb.StreamResponse(frame=request.frame, part=part), self.now)
                continue
            predicted = pb.PredictedFrame(version=1, outputs=[to_tensor("y", y)])
            if len(pieces) > 1:
                predicted.calls = np.arange(low, high, dtype="<u4").tobytes()
            self.core.receive(pb.StreamResponse(frame=request.frame, predicted=predicted), self.now)

    def refuse(self, frame: int, error: errors.StatestreamError, place: int | None = None) -> None:
        if place is None:
            refused = pb.RefusedFrame(status=errors.to_status(error))
            self.core.receive(pb.StreamResponse(frame=frame, refused=refused), self.now)
        else:
            row = RowError(handle=place, status=errors.to_status(error))
            self.core.receive(pb.StreamResponse(frame=frame, predicted=pb.PredictedFrame(errors=[row])), self.now)


@pytest.fixture
def core() -> StreamCore:
    return StreamCore(bytes(16), 1)


@pytest.fixture
def peer(core: StreamCore) -> Peer:
    return Peer(core)


def values(ticket: PredictTicket) -> list[float]:
    assert ticket.done
    assert ticket.error is None
    return ticket.value[:, 0].tolist()


def test_calls_of_one_moment_share_a_frame(core: StreamCore, peer: Peer) -> None:
    """Of a crowd two, so that both sides work at once; a call of another model has its own."""
    tickets = [call(core, n, n + 100) for n in range(6)]
    other = call(core, 7, kind=kind_of(model="other"))
    first, second = peer.take()
    assert (first.predict.model, second.predict.model) == ("double", "other")
    assert np.frombuffer(first.predict.rows, "<u4").tolist() == [2] * 6
    assert not second.predict.rows
    for request in (second, first):
        peer.answer(request)
    assert values(other) == [14]
    assert [values(ticket) for ticket in tickets] == [[2 * n, 2 * n + 200] for n in range(6)]
    assert not core.busy
    crowd = [call(core, n) for n in range(50)]
    assert [len(request.predict.rows) // 4 for request in peer.take()] == [25, 25]
    for request in peer.requests[-2:]:
        peer.answer(request)
    assert [values(ticket) for ticket in crowd] == [[2 * n] for n in range(50)]


def test_answers_are_matched_however_they_are_cut(core: StreamCore, peer: Peer) -> None:
    """The rows of a call are its own, also where the calls have different numbers of them, or none."""
    sizes = [1, 3, 0, 2, 1]
    tickets = [call(core, *range(10 * n, 10 * n + size)) for n, size in enumerate(sizes)]
    (request,) = peer.take()
    peer.answer(request, cuts=(1, 2, 4), parts=True)
    for n, (ticket, size) in enumerate(zip(tickets, sizes, strict=True)):
        assert values(ticket) == [2 * v for v in range(10 * n, 10 * n + size)]
    peer.answer(request)  # Once more: nobody waits for it.
    assert not core.predictions.in_flight


def test_what_a_broken_stream_had_is_sent_again_before_all_others(core: StreamCore, peer: Peer) -> None:
    first, second = call(core, 1), call(core, 2)
    (request,) = peer.take()
    third = call(core, 3)
    core.disconnected()
    assert core.busy
    peer.connect()
    (again,) = peer.take()
    assert from_tensor(again.predict.inputs[0])[:, 0].tolist() == [1, 2, 3]
    peer.answer(request)  # That of the lost stream has another number.
    assert not first.done
    peer.answer(again)
    assert [values(one) for one in (first, second, third)] == [[2], [4], [6]]


def test_a_cancelled_call_is_not_sent_or_not_waited_for(core: StreamCore, peer: Peer) -> None:
    unsent, sent = call(core, 1), call(core, 2)
    core.cancel(unsent)
    (request,) = peer.take()
    assert from_tensor(request.predict.inputs[0])[:, 0].tolist() == [2]
    core.cancel(sent)
    core.cancel(sent)
    assert not core.busy
    assert not core.drained
    kept = call(core, 3)
    core.disconnected()
    peer.connect()
    (again,) = peer.take()
    assert from_tensor(again.predict.inputs[0])[:, 0].tolist() == [3]
    peer.answer(again)
    assert values(kept) == [6]


def test_a_refused_call_is_made_again_as_calls_beside_the_stream_are(core: StreamCore, peer: Peer) -> None:
    """What may pass is asked for again, by itself; other refusals are told at once, and hurt no neighbour."""
    good, bad, busy = (call(core, n) for n in (1, 2, 3))
    (request,) = peer.take()
    peer.refuse(request.frame, errors.BadTensor("no"), 1)
    peer.refuse(request.frame, errors.Overloaded("later", retry_after=5.0), 2)
    assert isinstance(bad.error, errors.BadTensor)
    assert not busy.done
    y = pb.PredictedFrame(calls=bytes(4), outputs=[to_tensor("y", np.full((1, 2), 2, np.float32))])
    core.receive(pb.StreamResponse(frame=request.frame, predicted=y), 0.0)
    assert values(good) == [2]
    assert not core.predictions.in_flight
    assert core.due() == 5.0
    assert not peer.take()
    peer.now = 5.0
    (again,) = peer.take()
    peer.refuse(again.frame, errors.Draining("going"))
    peer.now = 61.0
    (last,) = peer.take()
    peer.refuse(last.frame, errors.Draining("going"))
    assert isinstance(busy.error, errors.Draining)
    assert not core.busy


def test_large_inputs_go_in_parts_and_let_others_pass(core: StreamCore, peer: Peer) -> None:
    wide = kind_of(PART // 4)
    large, larger = call(core, 1, 2, 3, kind=wide), call(core, 4, 5, kind=wide)
    head = core.next_request(0.0)
    assert head is not None
    assert (head.predict.parts, head.predict.inputs[0].data) == (3, b"")
    peer.answer(pb.StreamRequest.FromString(head.SerializeToString()))
    small = call(core, 9)
    sent = peer.take()
    assert "predict" in [request.WhichOneof("request") for request in sent[:3]]
    for request in sent:
        peer.answer(request)
    assert [values(one) for one in (large, larger, small)] == [[2, 4, 6], [8, 10], [18]]
    assert not core.predictions.waiting


def test_a_call_in_parts_that_is_cancelled_or_drained_away_makes_room(core: StreamCore, peer: Peer) -> None:
    wide = kind_of(PART // 4)
    dropped, next_one = call(core, 1, 2, 3, kind=wide), call(core, 4, 5, kind=wide)
    assert core.next_request(0.0) is not None
    assert core.next_request(0.0) is not None
    core.cancel(dropped)
    request = core.next_request(0.0)
    assert request is not None
    assert request.predict.parts == 2
    core.receive(pb.StreamResponse(go_away=pb.GoAwayFrame()), 0.0)
    assert core.drained
    assert core.next_request(0.0) is None
    core.disconnected()
    peer.connect()
    for request in peer.take():
        peer.answer(request)
    assert values(next_one) == [8, 10]


def test_windows_hold_calls_back_and_one_alone_may_be_larger(core: StreamCore) -> None:
    peer = Peer(core, Limits(max_message_bytes=16 << 20, max_frame_calls=100, max_window_bytes=4096))
    tickets = [call(core, n, kind=kind_of(100)) for n in range(9)]
    alone = call(core, *range(20), kind=kind_of(100, "other"))
    for _ in range(20):
        for request in peer.take():
            rows = len(from_tensor(request.predict.inputs[0]))
            assert 512 + 800 * rows <= 4096 or rows == 20
            peer.answer(request)
    assert [values(ticket) for ticket in tickets] == [[2 * n] for n in range(9)]
    assert values(alone) == [2 * n for n in range(20)]


def test_a_call_that_no_server_survives_is_told_and_spares_the_others(core: StreamCore, peer: Peer) -> None:
    """It is tried by itself once it was under way in several streams that ended by a fault."""
    bad, good = call(core, -1), call(core, 2)
    fault = errors.InternalError("it crashed")
    for _ in range(9):
        for request in peer.take():
            if (from_tensor(request.predict.inputs[0]) < 0).any():
                core.disconnected(fault)
                peer.connect()
                break
            peer.answer(request)
    assert values(good) == [4]
    assert isinstance(bad.error, errors.InternalError)
    assert "call of model 'double'" in bad.error.message


def test_a_call_that_a_standing_stream_does_not_answer_is_told(core: StreamCore, peer: Peer) -> None:
    ticket = call(core, 1)
    (request,) = peer.take()
    core.check(0.0)
    core.check(50.0)
    assert not ticket.done
    core.check(70.0)
    assert isinstance(ticket.error, errors.ServerUnavailable)
    assert "call of model 'double'" in ticket.error.message
    peer.answer(request)
    assert not core.busy


def test_a_server_without_predict_frames_is_told_of(core: StreamCore, peer: Peer) -> None:
    ticket = call(core, 1)
    peer.take()
    core.disconnected()
    core.connected(Limits(), pb.DURABILITY_MODE_NONE)
    assert isinstance(ticket.error, errors.Unsupported)


def test_everybody_is_told_when_the_client_gives_up(core: StreamCore, peer: Peer) -> None:
    sent = call(core, 1)
    (request,) = peer.take()
    held = call(core, 2)
    (other,) = peer.take()
    peer.refuse(other.frame, errors.Draining("going"))
    waiting = call(core, 3)
    core.give_up(errors.Closed("over"))
    assert [type(one.error) for one in (sent, held, waiting)] == [errors.Closed] * 3
    assert not core.busy
    assert not core.predictions.waiting
    peer.answer(request)


@settings(max_examples=100)
@given(data=st.data())
def test_whatever_happens_every_call_is_answered_once_and_right(data: st.DataObject) -> None:
    """Breaks, refusals, cancels, answers in any order and cut anyhow, between any two messages."""
    core = StreamCore(bytes(16), 1)
    peer, tickets, cancelled, numbers = Peer(core), list[tuple[int, PredictTicket]](), set[PredictTicket](), 0
    pending = list[pb.StreamRequest]()
    for _ in range(data.draw(st.integers(1, 60))):
        match data.draw(st.sampled_from(["call", "call", "send", "send", "answer", "cancel", "break", "refuse"])):
            case "call":
                size = data.draw(st.integers(0, 3))
                wide = data.draw(st.booleans())
                tickets.append(
                    (numbers, call(core, *range(numbers, numbers + size), kind=KIND if wide else kind_of(3)))
                )
                numbers += size
            case "send":
                pending += peer.take()
            case "answer" if pending:
                request = pending.pop(data.draw(st.integers(0, len(pending) - 1)))
                peer.answer(
                    request, tuple(data.draw(st.lists(st.integers(1, 9), max_size=3))), data.draw(st.booleans())
                )
            case "refuse" if pending:
                peer.refuse(pending.pop().frame, errors.Overloaded("later", retry_after=0.1))
            case "cancel" if tickets:
                _, ticket = data.draw(st.sampled_from(tickets))
                if not ticket.done:
                    cancelled.add(ticket)
                    core.cancel(ticket)
            case "break":
                pending.clear()
                core.disconnected()
                peer.connect()
            case _:
                pass
    for _ in range(100):
        peer.now += 0.2
        pending += peer.take()
        while pending:
            peer.answer(pending.pop(0))
    assert not core.busy
    assert not core.predictions.waiting
    assert not core.predictions.in_flight
    for first, ticket in tickets:
        if ticket not in cancelled:
            assert values(ticket) == [2 * n for n in range(first, first + ticket.rows)]


def test_a_tensor_that_cannot_be_is_no_part() -> None:
    for bad in (Tensor(name="x", dtype="float99"), Tensor(name="x", dtype="int8", shape=[-1])):
        with pytest.raises(errors.BadFrame, match="no array can be"):
            Partial([bad], "input")
    with pytest.raises(errors.BadFrame, match="no array can be"):
        Partial([Tensor(name="x", dtype="int8", shape=[0, 1 << 62])], "input")
