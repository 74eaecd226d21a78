"""One connection's HTTP/2, what leaves: the library h2, and a short path over its objects for what is written most.

That are header blocks that never change, DATA and trailers. Numbers behind rules are sections of RFC 9113.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream, StreamClosedBy, StreamState
from hyperframe.frame import Frame, GoAwayFrame

from statestream_server.edges.h2.floods import HEADER_MOST, MOST_STREAMS, STREAM_WINDOW

if TYPE_CHECKING:
    from statestream_server.edges.h2.call import Call
    from statestream_server.edges.h2.messages import Messages

CONNECTION_WINDOW: Final = 16 << 20
MOST_FRAME: Final = 64 << 10
FRAME: Final = Struct(">IBI")
"""A frame's header: its length and type as one number, flags, stream (§4.1)."""
CONFIG: Final = H2Configuration(
    client_side=False,
    header_encoding=None,
    normalize_outbound_headers=False,
    validate_outbound_headers=False,
    validate_inbound_headers=False,  # `Wire` does it: the library would end the connection, with all other calls on it.
)
_MESSAGE: Final = Struct(">IBIBI")
"""The header of a DATA frame and of the gRPC message that is all of it."""
MOST_OWED: Final = 4096
_HEADERS, _CONTINUATION = 1, 9
END_STREAM, END_HEADERS = 1, 4
_NO_TABLE: Final = b"\x20"
"""The size of the table by which header blocks are packed is 0 from now on (RFC 7541 §6.3)."""


class Writer(H2Connection):
    """The frames of one connection that leave."""

    MAX_CLOSED_STREAMS = 4 * MOST_STREAMS

    def __init__(self) -> None:
        """A connection that has said its own settings."""
        super().__init__(CONFIG)
        self.out: list[bytes] = []  # What is to be written.
        self.calls: dict[int, Call] = {}  # By stream: those whose answer has not left.
        self.blocked: dict[Call, None] = {}  # Calls that wait for room to write.
        self.widened = False  # Whether there may be room for those.
        self.paused = False  # Whether the socket takes no more.
        self.leaving = False  # Whether new calls are refused, because the client was told to go elsewhere.
        self.ended = False  # Whether nothing is read any more.
        self._tabled = True  # Whether the client may still expect that header blocks use a table.
        self.owed = 64  # WINDOW_UPDATE and PING frames that what was written may be answered with; more are useless.
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_FRAME_SIZE: MOST_FRAME,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEADER_MOST,
            },
        )
        self.max_inbound_frame_size = MOST_FRAME
        self.decoder.max_header_list_size = HEADER_MOST
        self.window = self._inbound_flow_control_window_manager
        self.initiate_connection()
        self.out.append(self.data_to_send())
        self.increment_flow_control_window(CONNECTION_WINDOW - 65535)

    @property
    def open_inbound_streams(self) -> int:
        """None for the library, which would end the connection over one call too many: `_opened` refuses that call."""
        return 0

    def _prepare_for_sending(self, frames: Sequence[Frame]) -> None:
        """What the library writes goes where the short path's goes."""
        self.out += [frame.serialize() for frame in frames]

    def _terminate_connection(self, error_code: Any) -> None:
        """The library would say GOAWAY without a reason; `receive` says it with one."""

    def headers(self, call: Call, block: bytes, *, end: bool) -> None:
        """Writes the begin or the end of an answer: a block that uses no table."""
        machine = call.stream.state_machine
        if machine.headers_sent:
            machine.trailers_sent = True
        machine.headers_sent = True
        if end:
            half_close(machine, StreamState.HALF_CLOSED_LOCAL, StreamClosedBy.SEND_END_STREAM)
        self.block(call.number, block, end=end)

    def block(self, number: int, block: bytes, *, end: bool) -> None:
        """Writes a header block."""
        if self._tabled:
            self._tabled, block = False, _NO_TABLE + block
        kind, flags, most = _HEADERS, END_STREAM if end else 0, self.max_outbound_frame_size
        while len(block) > most:
            self.out += (FRAME.pack(most << 8 | kind, flags, number), block[:most])
            kind, flags, block = _CONTINUATION, 0, block[most:]
        self.out += (FRAME.pack(len(block) << 8 | kind, flags | END_HEADERS, number), block)

    def message(self, call: Call, message: bytes) -> bool:
        """Writes a message in one frame; False where it does not fit in one now, and nothing is written."""
        size, stream = len(message) + 5, call.stream
        if (
            size > self.outbound_flow_control_window
            or size > stream.outbound_flow_control_window
            or size > self.max_outbound_frame_size
            or self.paused
            or call.pending
        ):
            return False
        if self.owed < MOST_OWED:
            self.owed += 4
        self.outbound_flow_control_window -= size
        stream.outbound_flow_control_window -= size
        self.out += (_MESSAGE.pack(size << 8, 0, call.number, 0, size - 5), message)
        return True

    def data(self, call: Call, data: memoryview) -> int:
        """Writes as much of some bytes as the windows take; how much that was (§6.9.1)."""
        stream, written = call.stream, 0
        while not self.paused:
            size = min(
                self.outbound_flow_control_window,
                stream.outbound_flow_control_window,
                self.max_outbound_frame_size,
                len(data) - written,
            )
            if size <= 0:
                break
            if self.owed < MOST_OWED:
                self.owed += 4
            self.outbound_flow_control_window -= size
            stream.outbound_flow_control_window -= size
            self.out += (FRAME.pack(size << 8, 0, call.number), bytes(data[written : written + size]))
            written += size
        return written

    def reset(self, number: int, code: ErrorCodes) -> None:
        """Ends a stream whatever its state."""
        stream = self.streams.get(number)
        if stream is not None:
            if not stream.closed:
                self.reset_stream(number, code)
            self._drop(stream)

    def forget(self, call: Call) -> None:
        """Lets go of a call that is over on both sides, or was reset."""
        self.calls.pop(call.number, None)
        self.blocked.pop(call, None)
        call.usual = False
        self._drop(call.stream)

    def grant(self, call: Messages, size: int) -> None:
        """Lets more bytes come on a stream."""
        if call.stream.state_machine.state in (StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL) and not self.ended:
            self.increment_flow_control_window(size, call.number)

    def goaway(self, code: int, reason: str, last: int | None = None) -> None:
        """Writes GOAWAY with a reason. Up to stream `last` calls are still answered; None ends the connection.

        §6.8: the library would take nothing more after a GOAWAY of its own.
        """
        if not self.ended:
            self.ended = last is None
            last = self.highest_inbound_stream_id if last is None else last
            self.out.append(GoAwayFrame(0, last, code, reason.encode()[:512]).serialize())

    def _drop(self, stream: H2Stream) -> None:
        if self.streams.pop(stream.stream_id, None) is not None:
            self._closed_streams[stream.stream_id] = stream.closed_by


def half_close(machine: Any, half: StreamState, by: StreamClosedBy) -> None:
    """§5.1: one side of a stream has said all."""
    if machine.state == StreamState.OPEN:
        machine.state = half
    else:
        machine.state, machine.stream_closed_by = StreamState.CLOSED, by
