"""The short path against the library: whatever comes is accepted, refused and counted the same."""

from __future__ import annotations

from collections import deque
from typing import Any

from h2.stream import H2Stream
from hyperframe.frame import Frame, GoAwayFrame
from hypothesis import example, given, settings

from statestream_server.edges.h2 import heads
from statestream_server.edges.h2.heads import Head
from statestream_server.edges.h2.wire import Wire
from tests.server.edges.sequences import Sender, Step, cuts, mutated, mutations, pieces, steps


class Called:
    """A call as the wire sees one: it notes what it is told, and answers when it is asked to."""

    def __init__(self, owner: Owner, stream: H2Stream, head: Head) -> None:
        self.number, self.stream = stream.stream_id, stream
        self.window = stream._inbound_window_manager
        self.usual = self.over = False
        self.pending = deque[memoryview]()
        self.parts = None
        self._owner, self._method = owner, head.method
        self._began = False

    def begin(self) -> None:
        self._owner.note("begin", self.number, self._method)

    def came(self, message: bytes, size: int) -> None:
        self._owner.note("data", self.number, b"\0" + (size - 5).to_bytes(4, "big") + message)

    def arrived(self, data: bytes, begin: int, end: int) -> None:
        self._owner.note("data", self.number, bytes(data[begin:end]))

    def half_closed(self) -> None:
        self._owner.note("half-closed", self.number)

    def lost(self) -> None:
        self._owner.note("lost", self.number)
        self._owner.wire.forget(self)  # type: ignore[arg-type]

    def go_on(self) -> None:
        while self.pending:
            written = self._owner.wire.data(self, self.pending[0])  # type: ignore[arg-type]
            if written < len(self.pending[0]):
                self.pending[0] = self.pending[0][written:]
                return
            self.pending.popleft()

    def answer(self, what: int) -> None:
        """A message, or the end, as calls write them."""
        wire = self._owner.wire
        if not self._began:
            self._began = True
            wire.headers(self, heads.BEGAN, end=False)  # type: ignore[arg-type]
        message = bytes(20 + 7000 * (what % 3))
        if self.pending or not wire.message(self, message):  # type: ignore[arg-type]
            self.pending.append(memoryview(b"\0" + len(message).to_bytes(4, "big") + message))
            self.go_on()
        if what % 4 == 0 and not self.pending:
            wire.headers(self, heads.ENDED, end=True)  # type: ignore[arg-type]
            if not self.stream.closed:
                wire.reset(self.number, 0)  # type: ignore[arg-type]
            wire.forget(self)  # type: ignore[arg-type]


class Owner:
    """What has a wire, and everything that it was told."""

    def __init__(self, *, short: bool) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.wire = Wire(self.opened, short=short)

    def note(self, *what: Any) -> None:
        # The library cuts no DATA, the socket does not either; empty DATA says nothing.
        if what[0] != "data" or what[2]:
            self.told.append(what)

    def opened(self, stream: H2Stream, head: Head) -> Any:
        return Called(self, stream, head)

    def do(self, step: Step, number: int) -> None:
        call: Any = self.wire.calls.get(number)
        if call is None or self.wire.ended:
            return
        if step.kind == "answer":
            call.answer(step.choice)
        elif step.kind == "drop" and step.flags == 0:
            self.wire.reset(number, 8)  # type: ignore[arg-type]
            self.wire.forget(call)

    def said(self) -> list[tuple[Any, ...]]:
        """What was written, frame by frame; of a GOAWAY not the words."""
        out, self.wire.out = b"".join(self.wire.out), []
        found = []
        while out:
            frame, length = Frame.parse_frame_header(memoryview(out[:9]))
            body, out = out[9 : 9 + length], out[9 + length :]
            if isinstance(frame, GoAwayFrame):
                body = body[:8]
            found.append((frame.type, sorted(map(str, frame.flags)), frame.stream_id, body))
        return found

    def counted(self) -> Any:
        """Everything by which the next frame is judged."""
        wire = self.wire
        own = {
            number: (
                str(stream.state_machine.state),
                stream._inbound_window_manager.current_window_size,
                stream.outbound_flow_control_window,
                stream.state_machine.headers_received,
                stream.state_machine.headers_sent,
                stream.state_machine.trailers_sent,
            )
            for number, stream in wire.streams.items()
        }
        whole = (
            wire.ended,
            wire.highest_inbound_stream_id,
            wire.outbound_flow_control_window,
            wire._inbound_flow_control_window_manager.current_window_size,
            wire.decoder.header_table.dynamic_entries,
            dict(wire._closed_streams),
        )
        return own, whole, sorted(wire.calls), self.told


def compared(made: list[Step], sizes: list[int], changes: list[tuple[int, int, str]]) -> None:
    """Both take the same bytes in the same cuts, do the same beside them, and are compared after each."""
    ours, library = Owner(short=True), Owner(short=False)
    sender = Sender()
    parts = [(None, sender.begin()), *((step, sender.sent(step)) for step in made)]
    if changes:
        parts = [(None, mutated(b"".join(sent for _, sent in parts), changes))]
    for step, sent in parts:
        for piece in pieces(sent, sizes if len(parts) == 1 else sizes[:2]):
            for owner in (ours, library):
                owner.wire.receive(piece)
            assert ours.said() == library.said()
            assert ours.counted() == library.counted()
        if step is not None:
            for owner in (ours, library):
                owner.do(step, sender.number(step))
            assert ours.said() == library.said()
            assert ours.counted() == library.counted()


@given(steps, cuts)
@settings(max_examples=300)
def test_frames_in_order_are_taken_as_the_library_takes_them(made: list[Step], sizes: list[int]) -> None:
    compared(made, sizes, [])


RESERVED = [Step("call", 0, 0, 0), Step("window", 0, 0, 0), Step("data", 0, 2, 0)]
"""The broken byte is the first one of the window's, whose highest bit means nothing: the library refuses it."""


@given(steps, cuts, mutations)
@example(RESERVED, [], [(181, 128, "flip")])
@settings(max_examples=200)
def test_frames_that_are_broken_are_taken_as_the_library_takes_them(
    made: list[Step], sizes: list[int], changes: list[tuple[int, int, str]]
) -> None:
    compared(made, sizes, changes)
