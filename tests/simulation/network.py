"""The network: gRPC's channels, calls and servers over connections that delay, break, fall silent and refuse.

What is here takes the place of grpc.aio's channel and server; what a servicer and a stub see is as there. A connection
delivers the messages of one call in order. Where it breaks, what was under way is lost, and each side hears of it when
it does; where it falls silent, nobody hears of it, and what was under way may still come, much later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc

from tests.simulation.loop import RUNNING, Loop, Process

_ROOM = 1 << 16
"""Bytes of one call that may be under way in one direction."""
_OK = grpc.StatusCode.OK


@dataclass(slots=True)
class Weather:
    """How the network is, of a pair of client and server.

    Attributes:
        slow: Seconds that a message takes at most.
        silent: Whether nothing comes through, in neither direction, and nobody is told.
        closed: Whether connections are refused.
    """

    slow: float = 0.002
    silent: bool = False
    closed: bool = False


class Network:
    """All addresses and all connections."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.servers: dict[str, Server] = {}
        self.connections = list[Connection]()
        self.weather: dict[tuple[str, str], Weather] = {}

    def between(self, client: Process, address: str) -> Weather:
        """How the way from a client to an address is."""
        return self.weather.setdefault((client.name, address), Weather())

    def channel(self, address: str, options: Any = None) -> Channel:
        """grpc.aio.insecure_channel."""
        return Channel(self, address, RUNNING.get())

    def server(self, options: Any = None) -> Server:
        """grpc.aio.server."""
        return Server(self, RUNNING.get())

    def cut(self, chosen: Callable[[Connection], bool]) -> int:
        """Breaks connections; how many."""
        cut = [connection for connection in self.connections if chosen(connection)]
        for connection in cut:
            connection.cut()
        return len(cut)

    def lost(self, process: Process) -> None:
        """A process died: the machine under it closes its connections, or is gone with it."""
        for connection in [*self.connections]:
            if process in (connection.client, connection.server.process):
                connection.cut()


class Connection:
    """One connection of a channel."""

    def __init__(self, network: Network, client: Process, server: Server) -> None:
        self.network, self.client, self.server = network, client, server
        self.weather = network.between(client, server.address)
        self.open = True
        self.calls = list[Call]()
        self.held = list[tuple[Process, Callable[[], None]]]()
        self.releasing = 0
        network.connections.append(self)

    def send(self, pipe: _Pipe, deliver: Callable[[], None]) -> None:
        """Has something happen at the other end of one direction of a call, after what was sent before it."""
        if not self.open:
            return
        loop = self.network.loop
        pipe.last = max(pipe.last, loop.time() + loop.draw.random() * self.weather.slow)
        loop.at(pipe.last, self._arrived, pipe, deliver, context=pipe.target.context)

    def _arrived(self, pipe: _Pipe, deliver: Callable[[], None]) -> None:
        if not self.open and not pipe.late:
            return
        if self.weather.silent or self.held:
            self.held.append((pipe.target, deliver))
        elif self.releasing:
            self._release(pipe.target, deliver)  # Not before what was held back.
        else:
            deliver()

    def release(self, *, whole: bool) -> None:
        """What was held back comes now, all of it or none."""
        held, self.held = self.held, []
        for target, deliver in held if whole else ():
            self._release(target, deliver)

    def _release(self, target: Process, deliver: Callable[[], None]) -> None:
        def released() -> None:
            self.releasing -= 1
            deliver()

        self.releasing += 1
        self.network.loop.at(self.network.loop.time(), released, context=target.context)

    def cut(self) -> None:
        """It breaks; each side hears of it in its time."""
        if not self.open:
            return
        self.open = False
        self.network.connections.remove(self)
        loop = self.network.loop
        loop.trace("cut", self.client.name, self.server.process.name)
        for call in self.calls:
            for process, tell in ((self.client, call.unavailable), (self.server.process, call.left)):
                loop.at(loop.time() + loop.draw.choice((0.0, 0.001, 0.05)), tell, context=process.context)


class _Pipe:
    """One direction of one call."""

    def __init__(self, target: Process) -> None:
        self.target = target
        self.last = 0.0
        self.late = False
        self.nbytes = 0
        self.room = asyncio.Event()
        self.room.set()


class Channel:
    """A channel: what stubs make calls of."""

    def __init__(self, network: Network, address: str, process: Process) -> None:
        self.network, self.address, self.process = network, address, process
        self.connection: Connection | None = None
        self.calls = list[Call]()

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """A method with one message each way."""
        return lambda request, timeout=None, metadata=(): UnaryCall(
            self, method, request_serializer, response_deserializer, metadata, request, timeout
        )

    def unary_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """A method that answers with many messages."""
        return lambda request, timeout=None, metadata=(): StreamedCall(
            self, method, request_serializer, response_deserializer, metadata, request, timeout
        )

    def stream_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """A method with many messages both ways."""
        return lambda metadata=(): Call(self, method, request_serializer, response_deserializer, metadata)

    async def close(self) -> None:
        """Ends it and its calls."""
        for call in [*self.calls]:
            call.cancel()
        if self.connection is not None and self.connection.open:
            self.connection.cut()

    def connected(self) -> Connection | None:
        """The connection of now; None where none is to be had."""
        if self.connection is None or not self.connection.open:
            server = self.network.servers.get(self.address)
            refused = (
                server is None or not server.process.alive or self.network.between(self.process, self.address).closed
            )
            self.connection = None if refused or server is None else Connection(self.network, self.process, server)
        return self.connection


class Call:
    """A call, as its client sees it."""

    def __init__(self, channel: Channel, method: str, serialize: Any, deserialize: Any, metadata: Any) -> None:
        self.channel, self.method, self.metadata = channel, method, metadata
        self.loop, self.process = channel.network.loop, channel.process
        self._serialize, self._deserialize = serialize, deserialize
        self._inbox = deque[bytes]()
        self._more: asyncio.Future[None] | None = None
        self._status: grpc.aio.AioRpcError | None = None
        self._by_us = False
        self._closed = False
        self._callbacks = list[Callable[[Any], None]]()
        self.served: Served | None = None
        channel.calls.append(self)
        self.connection = channel.connected()
        if self.connection is None:
            self.loop.at(self.loop.time() + self.loop.draw.choice((0.0, 0.001)), self.unavailable)
            return
        connection = self.connection
        connection.calls.append(self)
        self.out, self.back = _Pipe(connection.server.process), _Pipe(self.process)
        connection.send(self.out, self._begin)

    # What connection and server tell.

    def _begin(self) -> None:
        assert self.connection is not None
        self.served = self.connection.server.begin(self)

    def unavailable(self) -> None:
        """The connection is gone."""
        self.end(grpc.StatusCode.UNAVAILABLE, "the connection broke")

    def left(self) -> None:
        """The server's side hears that the caller is gone."""
        if self.served is not None:
            self.served.left()

    def take(self, data: bytes) -> None:
        """A message has come."""
        if self._status is None:
            self._inbox.append(data)
            self._wake()

    def end(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        """The call is over."""
        if self._status is None:
            self._status = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)
            if self in self.channel.calls:
                self.channel.calls.remove(self)
            if self.connection is not None and self in self.connection.calls:
                self.connection.calls.remove(self)
            for callback in self._callbacks:
                callback(self)
            self._wake()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    # What the caller asks.

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Calls it when the call is over."""
        if self._status is not None:
            callback(self)
        else:
            self._callbacks.append(callback)

    def done(self) -> bool:
        """Whether it is over."""
        return self._status is not None

    def cancel(self) -> bool:
        """Ends it from here."""
        if self._status is not None:
            return False
        self._by_us = True
        if self.connection is not None:
            self.connection.send(self.out, self.left)
        self.end(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
        return True

    async def code(self) -> grpc.StatusCode:
        """How it ended; there is nothing to wait for."""
        await self._ended()
        assert self._status is not None
        return self._status.code()

    async def details(self) -> str | None:
        """The words of it."""
        await self._ended()
        assert self._status is not None
        return self._status.details()

    async def trailing_metadata(self) -> Any:
        """What came with it."""
        await self._ended()
        assert self._status is not None
        return self._status.trailing_metadata()

    async def _ended(self) -> None:
        while self._status is None:
            await self._wait()

    async def _wait(self) -> None:
        self._more = self.loop.create_future()
        try:
            await self._more
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _check(self) -> None:
        assert self._status is not None
        if self._by_us:
            raise asyncio.CancelledError
        if self._status.code() is not _OK:
            raise self._status

    async def read(self) -> Any:
        """The next message, or EOF."""
        while not self._inbox and self._status is None:
            await self._wait()
        if self._inbox and not self._by_us:
            data = self._inbox.popleft()
            self.back.nbytes -= len(data)
            self.back.room.set()
            return self._deserialize(data)
        self._check()
        return grpc.aio.EOF

    async def write(self, message: Any) -> None:
        """Sends a message; waits while too much is under way."""
        if self._status is not None:
            raise asyncio.InvalidStateError("the call is over")
        if self._closed:
            raise asyncio.InvalidStateError("the call is half-closed")
        self._send(self._serialize(message))
        while self.out.nbytes > _ROOM and self._status is None:
            self.out.room.clear()
            waiting = asyncio.ensure_future(self.out.room.wait())
            self._callbacks.append(lambda _: self.out.room.set())
            try:
                await waiting
            except asyncio.CancelledError:
                self.cancel()
                raise
        if self._status is not None:
            self._check()

    def _send(self, data: bytes) -> None:
        assert self.connection is not None
        self.out.nbytes += len(data)
        self.connection.send(self.out, lambda: self.served.take(data) if self.served is not None else None)

    async def done_writing(self) -> None:
        """Says that nothing more comes."""
        if self._status is None and not self._closed and self.connection is not None:
            self._closed = True
            self.connection.send(self.out, lambda: self.served.closes() if self.served is not None else None)


class StreamedCall(Call):
    """A call with one request."""

    def __init__(
        self, channel: Channel, method: str, serialize: Any, deserialize: Any, metadata: Any, request: Any, timeout: Any
    ) -> None:
        super().__init__(channel, method, serialize, deserialize, metadata)
        if self.connection is not None:
            self._send(serialize(request))
            self._closed = True
            self.connection.send(self.out, lambda: self.served.closes() if self.served is not None else None)
        if timeout is not None:
            timer = self.loop.call_later(timeout, self._late)
            self.add_done_callback(lambda _: timer.cancel())

    def _late(self) -> None:
        self.loop.trace("late", self.process.name)
        if self.connection is not None:
            self.connection.send(self.out, self.left)
        self.end(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message


class UnaryCall(StreamedCall):
    """A call with one answer."""

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        message = await self.read()
        await self._ended()
        self._check()
        return message


class Server:
    """grpc.aio.server: finds who serves a call, and serves it."""

    def __init__(self, network: Network, process: Process) -> None:
        self.network, self.process = network, process
        self.address = ""
        self.stopped = False
        self._over = asyncio.Event()
        self.calls = list[Served]()
        self._handlers: Any = ()

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """What serves calls."""
        self._handlers = handlers

    def add_insecure_port(self, address: str) -> int:
        """Takes an address."""
        self.address = address
        return int(address.rpartition(":")[2])

    async def start(self) -> None:
        """Connections are taken from now on."""
        self.network.servers[self.address] = self

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls; those under way end, after `grace` seconds at the latest."""
        self.stopped = True
        tasks = [call.task for call in self.calls]
        if tasks and grace:
            await asyncio.wait(tasks, timeout=grace)
        for connection in [*self.network.connections]:
            if connection.server is self:
                connection.cut()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._over.set()

    async def wait_for_termination(self) -> None:
        """Returns once it has stopped."""
        await self._over.wait()

    def begin(self, call: Call) -> Served:
        """A call has come."""
        return Served(self, call)

    def find(self, method: str, metadata: Any) -> Any:
        """What serves a method."""
        details = SimpleNamespace(method=method, invocation_metadata=tuple(metadata))
        return next(handler for one in self._handlers if (handler := one.service(details)) is not None)


class Served:
    """A call, as its server sees it: the context of a servicer, and the iterator of its requests."""

    def __init__(self, server: Server, call: Call) -> None:
        self.server, self.call = server, call
        self._inbox = deque[bytes]()
        self._half_closed = False
        self._gone = False
        self._said = False
        self._more: asyncio.Future[None] | None = None
        self._deserialize: Any = None
        self._serialize: Any = None
        self.task = server.process.create(self._serve(), "rpc")
        server.calls.append(self)

    async def _serve(self) -> None:
        try:
            if self.server.stopped:
                self._end(grpc.StatusCode.UNAVAILABLE, "the server stopped")
                return
            handler = self.server.find(self.call.method, self.call.metadata)
            self._deserialize, self._serialize = handler.request_deserializer, handler.response_serializer
            request: Any = self
            if not handler.request_streaming:
                request = await self.read()
            serve = handler.stream_stream or handler.unary_stream or handler.unary_unary or handler.stream_unary
            answer = await serve(request, self)
            if answer is not None and not self._said:
                await self.write(answer)
            self._end(_OK)
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            self._end(grpc.StatusCode.CANCELLED, "cancelled")
            raise
        except Exception as error:
            self.server.network.loop.errors.append(f"a call failed without a status: {error!r}")
            self._end(grpc.StatusCode.UNKNOWN, repr(error))
        finally:
            self.server.calls.remove(self)

    def _end(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        if not self._said:
            self._said = True
            self._tell(lambda: self.call.end(code, details, trailing))

    def _tell(self, what: Callable[[], None]) -> None:
        connection = self.call.connection
        if connection is not None and self.server.process.alive:
            connection.send(self.call.back, what)

    # What the connection tells.

    def take(self, data: bytes) -> None:
        """A message has come."""
        self._inbox.append(data)
        self._wake()

    def closes(self) -> None:
        """Nothing more comes."""
        self._half_closed = True
        self._wake()

    def left(self) -> None:
        """The caller is gone."""
        self._gone = True
        self.task.cancel()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    # What the servicer asks.

    async def read(self) -> Any:
        """The next message, or EOF."""
        while not self._inbox and not self._half_closed:
            self._more = self.server.network.loop.create_future()
            await self._more
        if not self._inbox:
            return grpc.aio.EOF
        data = self._inbox.popleft()
        self.call.out.nbytes -= len(data)
        if self.call.out.nbytes <= _ROOM and not self.call.out.room.is_set():
            self._tell(self.call.out.room.set)
        return self._deserialize(data)

    async def write(self, message: Any) -> None:
        """Sends a message; waits while too much is under way."""
        if self._said:
            raise grpc.aio.UsageError("the call is over")
        data, pipe = self._serialize(message), self.call.back
        pipe.nbytes += len(data)
        self._tell(lambda: self.call.take(data))
        while pipe.nbytes > _ROOM:
            pipe.room.clear()
            await pipe.room.wait()

    def __aiter__(self) -> Served:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Nothing depends on it here."""

    async def abort_with_status(self, status: Any) -> None:
        """Ends the call with an error."""
        self._end(status.code, status.details, status.trailing_metadata or ())
        raise grpc.aio.AbortError

    def invocation_metadata(self) -> Any:
        """What the caller sent along."""
        return self.call.metadata
