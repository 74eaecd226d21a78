"""One connection's HTTP/2, what comes: the library h2, and a short path over its objects for the frames that come most.

The short path takes DATA without padding on an open stream, HEADERS whose block was seen before, and WINDOW_UPDATE. It
does to the library's objects what the library does, so either may take the next frame; whatever is not as usual is the
library's, refusals too. Numbers behind rules are sections of RFC 9113. tests/server/edges/test_wire.py compares both by
random frames.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final

from h2 import events
from h2.errors import ErrorCodes
from h2.exceptions import FrameTooLargeError, ProtocolError
from h2.stream import H2Stream, StreamClosedBy, StreamState
from h2.utilities import HeaderValidationFlags, validate_headers
from hpack.exceptions import HPACKError

from statestream_server.edges.h2.floods import BLOCK_MOST, MOST_SETTINGS, MOST_STREAMS, STREAM_WINDOW, Budget, TooMuch
from statestream_server.edges.h2.heads import Head, read
from statestream_server.edges.h2.writer import (
    CONFIG,
    CONNECTION_WINDOW,
    END_HEADERS,
    END_STREAM,
    FRAME,
    MOST_FRAME,
    MOST_OWED,
    Writer,
    half_close,
)
from statestream_server.edges.turns import WEIGHT

if TYPE_CHECKING:
    from statestream_server.edges.h2.call import Call

_LARGEST_WINDOW: Final = 2**31 - 1
_MOST_BLOCKS: Final = 256
_LONGEST_BLOCK: Final = 2048
"""Header blocks that are remembered, and the bytes of one."""
_PEEK: Final = Struct(">IBII")
"""A frame's header, and the first 4 bytes of what is in it."""
_WIDENED: Final = 4 << 8 | 8
"""The length and type of a WINDOW_UPDATE."""
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 6, 7, 9
_LAST: Final = 4
"""A stream is one of the last two where its number is so little below the highest."""
_LATE: Final = 0.1
"""What the reset of an earlier one costs."""
_NAMES: Final = ("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY",
                 "WINDOW_UPDATE", "CONTINUATION")  # fmt: skip
_FLAGS: Final[dict[type[events.Event], HeaderValidationFlags]] = {
    kind: HeaderValidationFlags(is_client=False, is_trailer=trailer, is_response_header=False, is_push_promise=False)
    for kind, trailer in ((events.RequestReceived, False), (events.TrailersReceived, True))
}
_log = logging.getLogger(__name__)


class Wire(Writer):
    """The frames of one connection, in and out."""

    def __init__(self, begin: Callable[[H2Stream, Head], Call], *, short: bool = True) -> None:
        """A connection that has said its own settings; `begin` makes a stream's call, `short` is for tests."""
        super().__init__()
        self.pinged = False  # Whether a PING of ours is not answered yet.
        self.settled = False  # Whether the client's first SETTINGS came.
        self.hurried: Callable[[Head, int], bytes | None] | None = None
        """Says whether a call whose message has so many bytes is refused at once: the headers that answer it."""
        self._begin = begin
        self._short = short
        self._rest = b""
        self._preface = 24
        self._block = 0  # Bytes of the header block that is coming in several frames.
        self._split = False  # Whether such a block is coming, and nothing else may (§4.3).
        self._blocks: dict[bytes, Head] = {}
        self._came = 0  # Bytes that came and are not given back to the connection's window.
        self._useless = Budget(2000, 100)
        self.resets = Budget(1000, 100)  # Calls that are given up; each that is answered makes good for one.

    def receive(self, data: bytes, most: int = 1 << 62) -> int:
        """Takes what one read brought. What is refused ends the connection: GOAWAY with the reason waits in `out`.

        It goes on as long as not `most` frames were handled; what is left then is taken by another `receive`.

        Returns:
            `most` without the frames that were handled, see turns.py: above 0 where nothing is left.
        """
        if self.ended:
            return most
        try:
            most = self._receive(data, most)
        except ProtocolError as error:
            # §4.3: the library calls it a protocol error.
            packed = isinstance(error.__cause__, HPACKError) and error.error_code == ErrorCodes.PROTOCOL_ERROR
            self.goaway(ErrorCodes.COMPRESSION_ERROR if packed else error.error_code, _unquoted(error))
        except Exception:
            _log.exception("the server failed on a frame")
            self.goaway(ErrorCodes.INTERNAL_ERROR, "the server failed on a frame; its log has the details")
        if self._came > CONNECTION_WINDOW // 4 and not self.ended:
            came, self._came = self._came, 0
            self.increment_flow_control_window(came)
        return most

    def _receive(self, data: bytes, most: int) -> int:
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, end = self._prefaced(data) if self._preface else 0, len(data)
        calls, window, quick = self.calls, self.window, self._is_quick
        while most > 0:
            if end - at >= 13:
                head, flags, number, first = _PEEK.unpack_from(data, at)
            elif end - at >= 9:
                (head, flags, number), first = FRAME.unpack_from(data, at), -2
            else:
                break
            if head == _WIDENED and quick and self._widen(number, first):
                at += 13
                continue
            size, kind = head >> 8, head & 255
            if size > MOST_FRAME:
                raise FrameTooLargeError(f"a frame of {size} bytes; at most {MOST_FRAME} are taken")  # §4.2
            begin, after = at + 9, at + 9 + size
            if after > end:
                break
            if kind <= _HEADERS:
                most -= 1 + (size >> WEIGHT)
            if kind == _DATA:
                call = calls.get(number)
                if (
                    call is not None
                    and call.usual
                    and flags <= END_STREAM
                    and size <= window.current_window_size
                    and size <= call.window.current_window_size
                    and (size or flags)
                    and not self._split
                ):
                    # §6.1, §6.9.1: an open stream, within both windows.
                    window.current_window_size -= size
                    call.window.current_window_size -= size
                    self._came += size
                    at = after
                    if flags:
                        call.usual, machine = False, call.stream.state_machine
                        half_close(machine, StreamState.HALF_CLOSED_REMOTE, StreamClosedBy.RECV_END_STREAM)
                    if first == size - 5 >> 8 and data[begin + 4] == size - 5 & 255 and call.parts is None:
                        call.came(data[begin + 5 : after], size)
                    else:
                        call.arrived(data, begin, after)
                    if flags:
                        call.half_closed()
                    continue
            elif kind == _HEADERS and quick and (over := self._known(number, flags, data, begin, after)):
                most -= (over > after) + (over - after >> WEIGHT)
                at = over
                continue
            at = after
            self._take(kind, flags, number, data[begin - 9 : after])
            if self.ended:
                return most
            quick = self._is_quick
        if at < end:
            self._rest = data[at:]
        return most

    @property
    def _is_quick(self) -> bool:
        """Whether the short path is open: behind the client's SETTINGS (§3.4), and between header blocks (§4.3)."""
        return self._short and self.settled and not self._split

    def _prefaced(self, data: bytes) -> int:
        """Takes of the preface what is there; where it ends."""
        at = min(self._preface, len(data))
        self._preface -= at
        self.receive_data(data[:at])
        return at

    # The short path in.

    def _known(self, number: int, flags: int, data: bytes, begin: int, after: int) -> int:
        """A header block came; where what was taken ends, or 0 where it was not seen before."""
        if flags | END_STREAM != END_HEADERS | END_STREAM:
            return 0
        # §5.1.1: a new stream is of the client's and higher than those before; §4.3: no table moves.
        head = self._blocks.get(data[begin:after])
        if head is None or not number & 1 or number <= self.highest_inbound_stream_id:
            return 0
        if self.hurried is not None and (over := self._hurry(number, head, data, after)):
            return over
        self._open(number, head, flags & END_STREAM)
        return after

    def _hurry(self, number: int, head: Head, data: bytes, at: int) -> int:
        """Refuses a call whose only message is there with it, where calls are refused; where it ends, or 0.

        It costs a fraction of what a stream costs that is begun, and answered.
        """
        assert self.hurried is not None
        widened, end = 0, len(data)
        if end - at >= 13 and data[at : at + 4] == b"\0\0\4\x08" and self.owed > 0:
            # C-core widens the stream before its message.
            of, widened = int.from_bytes(data[at + 5 : at + 9], "big"), int.from_bytes(data[at + 9 : at + 13], "big")
            if of != number or not 0 < widened <= _LARGEST_WINDOW - self.remote_settings.initial_window_size:
                return 0
            at += 13
        if end - at < 14:
            return 0
        kind, flags, of = FRAME.unpack_from(data, at)
        size: int = kind >> 8
        after = at + 9 + size
        if (
            kind & 255 != _DATA
            or flags != END_STREAM
            or of != number
            or after > end
            or not 5 <= size <= min(self.window.current_window_size, STREAM_WINDOW)
            or data[at + 9]
            or int.from_bytes(data[at + 10 : at + 14], "big") != size - 5
            or self.leaving
            or (block := self.hurried(head, size - 5)) is None
        ):
            return 0
        self.owed -= widened > 0
        self.window.current_window_size -= size
        self._came += size
        self.highest_inbound_stream_id = number
        self._closed_streams[number] = StreamClosedBy.SEND_END_STREAM
        self.block(number, block, end=True)
        self.answered()
        return int(after)

    def _open(self, number: int, head: Head, ended: int) -> None:
        """A stream begins, in the state in which the library has one that began."""
        settings = self.local_settings
        stream = H2Stream(number, CONFIG, settings.initial_window_size, self.remote_settings.initial_window_size)
        stream.max_outbound_frame_size = self.max_outbound_frame_size
        machine = stream.state_machine
        machine.client, machine.headers_received = False, True
        machine.state = StreamState.HALF_CLOSED_REMOTE if ended else StreamState.OPEN
        self.streams[number] = stream
        self.highest_inbound_stream_id = number
        self._opened(stream, head)
        if ended and (call := self.calls.get(number)) is not None:
            call.half_closed()

    def _widen(self, number: int, by: int) -> bool:
        """§6.9.1: more may be written; False where the library is to say what is wrong."""
        if not 0 < by <= _LARGEST_WINDOW or self.owed <= 0:
            return False
        self.owed -= 1
        call = self.calls.get(number)
        if call is not None:
            stream = call.stream
            by += stream.outbound_flow_control_window
            if by > _LARGEST_WINDOW:
                return False
            stream.outbound_flow_control_window = by
            if call.pending:
                call.go_on()
            return True
        if number:
            # §5.1: a stream that was answered meanwhile; C-core sends three for each call.
            return bool(number & 1) and number <= self.highest_inbound_stream_id and number not in self.streams
        by += self.outbound_flow_control_window
        if by > _LARGEST_WINDOW:
            return False
        self.outbound_flow_control_window = by
        self.widened = True
        return True

    def answered(self) -> None:
        """A call was answered, which makes good for one that is given up, and for WINDOW_UPDATEs."""
        self.resets.give()
        if self.owed < MOST_OWED:
            self.owed += 4  # A call that was refused has no data, and is answered with WINDOW_UPDATE all the same.

    # The library.

    def _take(self, kind: int, flags: int, number: int, frame: bytes) -> None:
        if not self.settled and kind != _SETTINGS:
            raise ProtocolError("the first frame is no SETTINGS frame")  # §3.4
        if kind == _GOAWAY and number == 0 and len(frame) >= 17:
            # §6.8: it is about streams that we would begin. The library would take no frame of the others after it.
            self._useless.take("GOAWAY frames")
            return
        if kind in (_HEADERS, _CONTINUATION):
            self._block += len(frame) - 9
            if self._block > BLOCK_MOST:
                raise TooMuch(f"a header block of more than {BLOCK_MOST} bytes")
            if kind == _CONTINUATION:
                self._useless.take("CONTINUATION frames")
            self._split = not flags & END_HEADERS
            if not self._split:
                self._block = 0
        elif kind == _PING and self.owed > 0:
            # grpc-go measures the round trip with one each time.
            self.owed -= 1
        elif kind == _RESET:
            self.resets.take("resets of streams", self._price(number))
        elif kind != _DATA:
            self._useless.take(f"{_NAMES[kind] if kind < len(_NAMES) else 'unknown'} frames")
        table = self.decoder.header_table
        entries = table.dynamic_entries
        before = (entries[0] if entries else None, len(entries), table.maxsize)
        found = self.receive_data(frame)
        same = before[0] is (entries[0] if entries else None) and before[1:] == (len(entries), table.maxsize)
        if not same:
            self._blocks.clear()
        for event in found:
            head = self._tell(event)
            whole = kind == _HEADERS and flags | END_STREAM == END_HEADERS | END_STREAM
            if head is not None and head.plain and whole and same and len(frame) <= _LONGEST_BLOCK:
                if len(self._blocks) >= _MOST_BLOCKS:
                    self._blocks.clear()
                self._blocks[frame[9:]] = head

    def _price(self, number: int) -> float:
        """What the client's reset of a stream costs of the budget.

        Whoever floods gives up what it has just begun, so that it is never beyond the calls of a connection. A client
        whose calls are too late gives up old ones: it has begun others since. That counts a tenth, each of its calls
        that is answered makes good for ten. Time says nothing here: begin and reset may come in one read, after a wait.
        """
        return 1 if self.highest_inbound_stream_id - number < _LAST else _LATE

    def _tell(self, event: events.Event) -> Head | None:
        """Does what follows of an event; of a call that began, its head."""
        head = None
        call = self.calls.get(getattr(event, "stream_id", 0) or 0)
        if isinstance(event, (events.RequestReceived, events.TrailersReceived)) and _malformed(event):
            self.resets.take("calls whose headers are malformed")
            self.reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            if call is not None:
                call.lost()
        elif isinstance(event, events.RequestReceived):
            head = read(event.headers or ())
            self._opened(self.streams[event.stream_id], head)
        elif isinstance(event, events.DataReceived):
            self._came += event.flow_controlled_length or 0
            data = event.data or b""
            if not data and not event.stream_ended:
                self._useless.take("DATA frames without data")
            if call is not None:
                call.arrived(data, 0, len(data))
        elif isinstance(event, events.StreamEnded):
            if call is not None:
                call.usual = False
                call.half_closed()
        elif isinstance(event, events.StreamReset):
            if not event.remote_reset:
                self.resets.take("streams that had to be reset")
            if call is not None:
                call.lost()
        elif isinstance(event, events.WindowUpdated):
            self.widened = True
        elif isinstance(event, events.RemoteSettingsChanged):
            self.settled = self.widened = True
            if len(self.remote_settings) > MOST_SETTINGS:
                raise TooMuch(f"more than {MOST_SETTINGS} kinds of settings")
        elif isinstance(event, events.PingAckReceived):
            self.pinged = False
        return head

    def _opened(self, stream: H2Stream, head: Head) -> None:
        """Begins the call of a new stream, or refuses it."""
        if len(self.calls) >= MOST_STREAMS or self.leaving:
            self.resets.take("calls beyond those that are served at a time")
            self.reset(stream.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        call = self._begin(stream, head)
        call.usual = head.plain and self._short and stream.state_machine.state == StreamState.OPEN
        self.calls[stream.stream_id] = call
        call.begin()


def _malformed(event: events.RequestReceived | events.TrailersReceived) -> bool:
    """Whether headers break the rules (§8.1.1), which concerns their stream alone."""
    try:
        for _ in validate_headers(event.headers or (), _FLAGS[type(event)]):
            pass
    except ProtocolError:
        return True
    return False


def _unquoted(error: Exception) -> str:
    """What the library says, without the header that it quotes: clients log why a connection ended."""
    return re.sub(r"b?'.*'|b?\".*\"|b['\"].*", "…", str(error), flags=re.DOTALL)
