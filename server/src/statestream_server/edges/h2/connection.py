"""One connection: what its socket brings, what leaves at the end of a turn, and the calls that it has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import grpc
from h2.errors import ErrorCodes
from h2.stream import H2Stream

from statestream_server.access.certificates import NOBODY, of_peer
from statestream_server.caller import ANYBODY, Caller
from statestream_server.edges.grpc.chain import admit
from statestream_server.edges.grpc.failures import status
from statestream_server.edges.h2.call import Call
from statestream_server.edges.h2.floods import (
    ANSWER_SECONDS,
    PREFACE_SECONDS,
    PROMISES,
    QUIET_SECONDS,
    WIDE,
    WIDE_TOGETHER,
)
from statestream_server.edges.h2.heads import Head, ended
from statestream_server.edges.h2.messages import Messages
from statestream_server.edges.h2.wire import Wire

if TYPE_CHECKING:
    from statestream_server.edges.h2.port import H2

LINGER_SECONDS: Final = 1.0
"""How long a connection that was ended may take to hear of it."""
_STATUS_SECONDS: Final = 10.0
"""How much longer a status waits behind a message that its reader has begun."""
_EVERY: Final = 2**31 - 1
"""In place of a stream in a GOAWAY: all that come on their way are still answered."""


class Connection(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, edge: H2) -> None:
        """Not connected yet."""
        self.loop, self.chain = edge.loop, edge.chain
        self.most_in, self.most_out = edge.most_in, edge.most_out
        self.wire = Wire(self._opened)
        self.wire.hurried = self._hurried
        self.tenant = ANYBODY.tenant  # Whose its last call was.
        self.names = NOBODY
        self._edge = edge
        self._turns = edge.turns
        self._held = False  # Whether nothing is read, because of what came something waits for another turn.
        self._transport: asyncio.Transport | None = None
        self._ready: dict[Call, None] = {}
        self.due = False
        self._promised = self._wide = 0
        self._asked: dict[Messages, int] = {}
        self._since = self._heard = monotonic()

    def connection_made(self, transport: Any) -> None:
        """Says the settings."""
        self._transport, self.abort = transport, transport.abort
        if len(self._edge.connections) >= self._edge.most_connections:
            self._edge.refused()
            self.refuse(
                ErrorCodes.ENHANCE_YOUR_CALM,
                f"this server has {self._edge.most_connections} connections, as many as it takes (--max-connections)",
            )
            return
        self._edge.connections.add(self)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":  # RFC 9113 §3.3.
            transport.abort()
            return
        self.names = of_peer(tls)
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Handles all that one read brought; what it is answered with leaves together."""
        self._heard = monotonic()
        self._receive(data)

    def read_on(self) -> None:
        """Handles what waited for this turn."""
        if self._transport is not None and not self.wire.ended:
            self._receive(b"")

    def _receive(self, data: bytes) -> None:
        """Handles as much as the turn has room for; no more is read while something is left."""
        wire, turns, tenant = self.wire, self._turns, self.tenant
        left = wire.receive(data, turns.left(tenant))
        turns.took(tenant, left)
        if wire.out or (wire.widened and wire.blocked):
            self.soon()
        if wire.ended:
            self._end()
        elif left <= 0:
            turns.wait(self)
            self._hold(True)
        elif self._held:
            self._hold(False)

    def _hold(self, held: bool) -> None:
        """Has the socket read no more for now, or again."""
        if held is not self._held and self._transport is not None and not self._transport.is_closing():
            self._held = held
            if held:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Ends its calls."""
        self._transport = None
        self.wire.ended = True
        self._edge.connections.discard(self)
        self._turns.forget(self)
        for call in [*self.wire.calls.values()]:
            call.lost()

    def pause_writing(self) -> None:
        """The client does not read."""
        self.wire.paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self.wire.paused = False
        self.wire.widened = True
        self.soon()

    def _opened(self, stream: H2Stream, head: Head) -> Call:
        """A call began: who serves it."""
        if head.handler is None and head.refusal is None:
            chain = self.chain
            head.handler, head.direct = chain.method(head.method), chain.take(head.method)
            if head.handler is None:
                head.refusal = ended(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        who = ANYBODY
        if head.refusal is None:
            # Before any message comes: who may not call has no room for one.
            try:
                who = admit(head.metadata, head.method, self.names)
                self.tenant = who.tenant
            except Exception as error:
                self.chain.refused(head.method, error)
                # Of this call alone: a token that comes to be known lets the next one in, with the same headers.
                head = replace(head, refusal=_refusal(error))
        return Call(self, stream, head, who)

    def _hurried(self, head: Head, nbytes: int) -> bytes | None:
        """The headers that refuse a call, of one message of so many bytes, that began just as one that was let in."""
        chain, who = self.chain, ANYBODY
        if not chain.refusing or head.refusal is not None or head.handler is None or head.handler.request_streaming:
            return None
        try:
            who = admit(head.metadata, head.method, self.names)
            chain.look(head.method, who, nbytes)
        except Exception as error:
            chain.refused(head.method, error)
            return _refusal(error, who)
        return None

    # What calls ask.

    def ready(self, call: Call) -> None:
        """A call is drawn from at the end of the turn."""
        self._ready[call] = None
        self.soon()

    def soon(self) -> None:
        """Something leaves at the end of the turn."""
        if not self.due:
            self.due = True
            self._turns.write(self)

    def flush(self) -> None:
        """The end of the turn: draws, and writes all there is."""
        self.due = True
        wire = self.wire
        if wire.widened:
            wire.widened = False
            for call in [*wire.blocked]:
                call.go_on()
        ready, self._ready = self._ready, {}
        for call in ready:
            call.draw()
        self.due = False
        transport = self._transport
        if wire.out and transport is not None:
            data = b"".join(wire.out)
            wire.out.clear()
            transport.write(data)

    def promise(self, call: Messages, want: int) -> None:
        """Lets a long message come, once there is room for it."""
        self._asked[call] = call.promised = want
        self._keep()

    def kept(self, call: Messages) -> None:
        """A long message is there, or nobody waits for it any more."""
        if self._asked.pop(call, None) is None:
            self._promised -= call.promised
        call.promised = 0
        self._keep()

    def widen(self, call: Messages, size: int) -> None:
        """Has the window of a stream that had a message of `size` bytes stay as wide as some such are long."""
        more = min(4 * size, WIDE) - call.wide
        if 0 < more <= WIDE_TOGETHER - self._wide:
            self._wide += more
            self._promised += more
            call.wide += more

    def _keep(self) -> None:
        while self._asked:
            call, want = next(iter(self._asked.items()))
            if self._promised and self._promised + want > PROMISES:
                return
            del self._asked[call]
            self._promised += want
            self.wire.grant(call, want)

    def closed(self, call: Call) -> None:
        """A call is over."""
        if call.wide:
            self._wide -= call.wide
            self._promised -= call.wide
            call.wide = 0
            self._keep()
        if self.wire.leaving and not self.wire.calls:
            self._end()

    # What the edge asks.

    def look(self, now: float, reader_seconds: float) -> None:
        """Ends what takes too long: a preface, an answer to a ping, a reader of what was answered."""
        wire, quiet = self.wire, now - self._heard
        if not wire.settled:
            if now - self._since > PREFACE_SECONDS:
                self.refuse(ErrorCodes.ENHANCE_YOUR_CALM, f"no preface and SETTINGS came in {PREFACE_SECONDS:g} s")
            return
        if wire.pinged and quiet > ANSWER_SECONDS and now - self._since > ANSWER_SECONDS:
            self.refuse(ErrorCodes.NO_ERROR, f"no answer to a PING in {ANSWER_SECONDS:g} s")
            return
        if not wire.pinged and quiet > QUIET_SECONDS:
            self._since = now
            wire.pinged = True
            wire.ping(b"presence")
            self.flush()
        for call in [*wire.blocked]:
            if call.over and now - call.since > reader_seconds + _STATUS_SECONDS:
                wire.reset(call.number, ErrorCodes.CANCEL)
                call.lost()
                self.soon()

    def leave(self) -> None:
        """Tells the client to begin its next calls elsewhere; those under way, and on their way, are answered."""
        self.wire.goaway(0, "the server is leaving", _EVERY)
        self.flush()

    def close(self) -> None:
        """Takes no more calls; ends when those that are there have ended."""
        if not self.wire.leaving:
            self.wire.leaving = True
            self.wire.goaway(0, "the server is leaving", self.wire.highest_inbound_stream_id)
            self.flush()
        if not self.wire.calls:
            self._end()

    def refuse(self, code: int, reason: str) -> None:
        """Ends it with a reason."""
        self.wire.goaway(code, reason)
        self.flush()
        self._end()

    def _end(self) -> None:
        """Closes the socket once what is written has left and the client closed it, too, or soon.

        Bytes that nobody reads would have the kernel end the connection in a way that loses the GOAWAY (RFC 9113 §9.1).
        """
        transport = self._transport
        if transport is None:
            return
        self.wire.ended = True
        self.flush()
        self._transport = None
        if self.wire.paused:
            transport.abort()
        elif transport.can_write_eof():
            transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, transport.abort)
        else:
            transport.close()


def _refusal(error: Exception, who: Caller | None = None) -> bytes:
    """The headers that answer a call of `who` with an error."""
    said = status(error, who)
    return ended(said.code, said.details, said.trailing_metadata or ())
