"""The relay: HTTP requests that a worker answers, handed on by the first process, which has the port.

A sequence has one worker for as long as that serves, whichever connections its requests come by: it would be stepped
from the store by each in turn. What names none, or not within its first bytes or behind a coding, goes by its
connection. A request goes to another worker only where nothing of it was sent: one that ended in between may have
applied it, and its caller alone knows whether it may be sent again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import h11
from starlette.types import Message, Receive, Scope, Send

from statestream.contract import errors
from statestream_server.access.certificates import RELAYED, told
from statestream_server.edges.http.refusals import refusal

_PIECE: Final = 256 << 10
_CONNECT_SECONDS: Final = 2.0
_BODY_SECONDS: Final = 10.0
_CALLER: Final = RELAYED.encode()
_SEQUENCE: Final = re.compile(rb'"sequence_id"\s*:\s*("[^"]{1,256}"|\d{1,19})')
_HOP: Final = frozenset(
    (b"connection", b"expect", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
"""Headers that concern one connection."""


class Worker(Protocol):
    """A worker as its first process sees it; see `pages.Worker`."""

    index: int
    reason: str


class Relay:
    """Hands requests on to workers."""

    def __init__(self, workers: Sequence[Worker], folder: Path) -> None:
        """Of some workers, each of which listens at its `path`."""
        self._workers = workers
        self._folder = folder

    def path(self, index: int) -> Path:
        """Where a worker listens, by its number."""
        return self._folder / f"{index}.sock"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Has a worker answer a request."""
        begun, first = False, list[Message]()

        async def replayed() -> Message:
            return first.pop() if first else await receive()

        async def begin(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            place: object = scope.get("client")
            if scope["method"] == "POST":
                try:
                    async with asyncio.timeout(_BODY_SECONDS):
                        first.append(await receive())
                except TimeoutError as error:
                    text = f"the body did not begin within {_BODY_SECONDS:g} s; send it at once"
                    raise errors.BadFrame(text) from error
                if found := _SEQUENCE.search(first[0].get("body", b"")):
                    place = scope["path"], found[1].strip(b'"')
            await self.hand_on(scope, replayed, begin, self.order(place))
        except errors.StatestreamError as error:
            if begun:
                raise  # The port ends the connection: nothing else tells that the answer is not whole.
            await refusal(error)(scope, receive, send)

    def order(self, place: object) -> Sequence[Worker]:
        """Those that serve: the one that has a place, and who would answer in its stead."""
        serving = [worker for worker in self._workers if not worker.reason] or list(self._workers)
        first = hash(place) % len(serving)
        return [*serving[first:], *serving[:first]]

    async def hand_on(self, scope: Scope, receive: Receive, send: Send, workers: Sequence[Worker]) -> None:
        """Has the first of some workers that can be reached answer a request.

        Raises:
            Unavailable: None can, or the one that had it ended.
        """
        reader, writer = await self._connected(workers)
        try:
            await _exchanged(scope, receive, send, reader, writer)
        finally:
            writer.close()

    async def _connected(self, workers: Sequence[Worker]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the first of some workers that answers.

        Raises:
            Unavailable: None does.
        """
        for worker in workers:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_unix_connection(self.path(worker.index))
            except (OSError, TimeoutError):
                continue
        raise errors.Unavailable("no worker of this server answers; it starts, or leaves: try again", retry_after=1.0)


async def _exchanged(
    scope: Scope, receive: Receive, send: Send, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Sends a request on, and its answer back; what comes is not held here."""
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    # A caller who says himself whose certificate he has is not believed.
    headers = [(name, value) for name, value in scope["headers"] if name not in _HOP and name.lower() != _CALLER]
    if names := scope.get("state", {}).get("names"):
        headers.append((_CALLER, told(names)))
    if not any(name == b"host" for name, _ in headers):
        headers.append((b"host", b""))  # HTTP/1.0 needs none, what a worker is asked in does.
    if not any(name == b"content-length" for name, _ in headers):
        chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        headers += [(b"transfer-encoding", b"chunked")] if chunked else []
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    head = wire.send(h11.Request(method=scope["method"], target=target, headers=[*headers, (b"connection", b"close")]))
    writer.write(head or b"")
    sending = asyncio.create_task(_sent(wire, receive, writer), name="relay")
    try:
        async for event in _events(wire, reader):
            if isinstance(event, h11.Response):
                kept = [(name, value) for name, value in event.headers if name not in _HOP]
                await send({"type": "http.response.start", "status": event.status_code, "headers": kept})
            elif isinstance(event, h11.Data):
                await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        sending.cancel()
        await asyncio.wait([sending])


async def _sent(wire: h11.Connection, receive: Receive, writer: asyncio.StreamWriter) -> None:
    """Sends a body on while it comes; a caller who is gone takes the worker's connection along."""
    try:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                writer.transport.abort()
                return
            data = wire.send(h11.Data(data=message.get("body", b""))) or b""
            if not message.get("more_body", False):
                writer.write(data + (wire.send(h11.EndOfMessage()) or b""))
                return
            writer.write(data)
            await writer.drain()
    except (OSError, h11.LocalProtocolError):
        return  # The worker answers without the rest, or is gone: who reads the answer finds out.


async def _events(wire: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[h11.Event]:
    """What the worker answers, without the end of it.

    Raises:
        Unavailable: It ended before.
    """
    try:
        while True:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                wire.receive_data(await reader.read(_PIECE))
            elif isinstance(event, h11.EndOfMessage):
                return
            elif isinstance(event, h11.Event):
                yield event
    except (OSError, h11.RemoteProtocolError) as error:
        raise errors.Unavailable(
            "the worker that had this request ended; it may have been applied: send it again with the parameter"
            " sequence_position, or its id, and it is applied once",
            retry_after=1.0,
        ) from error
