"""One stream of the Open Inference Protocol: the requests of one sequence in their order, others beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from statestream.contract import errors
from statestream_server import caller
from statestream_server.edges.grpc.decoding import Undecoded, Unreadable
from statestream_server.edges.grpc.failures import Context, begin, told
from statestream_server.edges.grpc.outbox import ERROR_BYTES, Outbox
from statestream_server.edges.grpc.readers import Reading
from statestream_server.edges.grpc.stream import feed
from statestream_server.edges.oip import oip_pb2 as pb
from statestream_server.edges.oip.answers import Encoded, streamed
from statestream_server.edges.oip.sequences import Asker, Read, Sequences, read_sequence
from statestream_server.server import Server
from statestream_server.sessions.admission.accounts import OVERHEAD

Came: TypeAlias = "pb.ModelInferRequest | Unreadable"
"""What comes on a stream."""
_COPIES: Final = 4
"""Of a request's contents that the server may hold until it is answered."""
_Key: TypeAlias = tuple[str, str]
"""A model and a sequence of it."""
_MOST_UNDER_WAY: Final = 256
"""Requests of one stream that are under way; it is not read on beyond that."""


class OipStream:
    """The requests of one stream. It is read on as long as what is under way is not too much."""

    def __init__(
        self,
        server: Server,
        context: Context,
        reading: Reading,
        sequences: Sequences,
        answer: Callable[[Came], Awaitable[pb.ModelStreamInferResponse | Encoded]],
        size: Callable[[Came], int],
    ) -> None:
        """A stream without requests.

        Args:
            server: Whose accounts it is in.
            context: The call.
            reading: Is told how its reader gets on.
            sequences: Takes the usual requests.
            answer: Answers any other; an error is an answer, too.
            size: About how many bytes such a request is to the server, with what it is answered.
        """
        self._context = context
        self._sequences = sequences
        self._answer = answer
        self._size = size
        self._tenant = caller.current.get().tenant
        self._accounts = server.accounts
        self._account = self._accounts.open()
        self._window = self._account.window()
        self._outbox = Outbox(context, reading, self._account, server.turns)
        self._tasks = set[asyncio.Task[None]]()
        self._count = 0
        self._less: asyncio.Future[None] | None = None
        self._last = dict[_Key, _Request]()
        """The newest request under way of each sequence."""
        self._held: Came | Undecoded | None = None
        """What came while there was no room."""

    async def serve(self) -> None:
        """Reads until the client half-closes, then answers what is left."""
        await begin(self._context)
        writer = asyncio.create_task(self._outbox.write(), name="oip-writer")
        try:
            while await feed(self._context, self._take):
                while self._held is not None:
                    held, self._held = self._held, None
                    if not self._begin(held):
                        self._held = held
                        await self._fewer()
                if self._outbox.full:
                    await self._outbox.room()
                await self._account.room()
            while self._count:
                await self._fewer()
            self._outbox.end()
            await writer
        finally:
            # Nothing of it is left, however it ends; who waits for what was taken already hears nothing.
            for task in self._tasks:
                task.cancel()
            writer.cancel()
            await asyncio.wait([writer])
            if not writer.cancelled():
                writer.exception()

    def _take(self, request: Any) -> bool:
        """Handles a request; whether the next may come."""
        if not self._begin(request):
            self._held = request
            return False
        return not self._outbox.full and not self._account.is_over

    async def _fewer(self) -> None:
        """Returns when a request has ended."""
        self._less = asyncio.get_running_loop().create_future()
        await self._less

    def _begin(self, came: Came | Undecoded) -> bool:
        """Begins to answer a request; False where there is no room for it."""
        window = self._window
        if self._count and (self._count >= _MOST_UNDER_WAY or window.held >= window.most):
            return False
        data = b""
        if isinstance(came, Undecoded):
            data = came.data
            if self._take_seen(data):
                return True
        request: Any = came.message() if isinstance(came, Undecoded) else came
        key = before = None
        if not isinstance(request, Unreadable):
            read = read_sequence(request)
            key = (request.model_name, str(read[0])) if read[0] else _sequence_key(request)
            before = self._last.get(key) if key else None
            if before is None and key and read[0] and self._take_usual(request, key, read, data):
                return True
        size = self._size(request)
        if self._count and window.held + size > window.most:
            return False
        one = self._started(key, size)
        task = asyncio.create_task(self._serve(one, request, before), name="oip-request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _take_seen(self, data: bytes) -> bool:
        seen = self._sequences.seen(data, self._tenant)
        if seen is None:
            return False
        head = seen[0]
        key = head.key[1:]
        if key in self._last:
            return False
        size = OVERHEAD + _COPIES * head.nbytes
        one = _Request(self, key, size)
        if not self._sequences.take_seen(seen, one):
            return False
        self._count += 1
        self._last[key] = one
        self._account.take(size, self._window)
        return True

    def _take_usual(self, request: Any, key: _Key, read: Read, data: bytes) -> bool:
        size = OVERHEAD + _COPIES * sum(map(len, request.raw_input_contents))
        one = _Request(self, key, size)
        try:
            if not self._sequences.take(request, self._tenant, one, read, data):
                return False
        except errors.StatestreamError:
            return False
        self._count += 1
        self._last[key] = one
        self._account.take(one.size, self._window)
        return True

    def _started(self, key: _Key | None, size: int) -> _Request:
        one = _Request(self, key, size)
        self._count += 1
        if key:
            self._last[key] = one
        self._account.take(size, self._window)
        return one

    async def _serve(self, one: _Request, request: Came, before: _Request | None) -> None:
        try:
            if before is not None:
                await before.over()
            response = await self._answer(request)
        except BaseException:
            one.end(None)
            raise
        one.end(lambda: response, response.ByteSize())

    def answered(self, one: _Request, message: bytes) -> None:
        """A request is answered by this message."""
        self._over(one)
        self._outbox.put_bytes(message, self._window, one.size)

    def ended(self, one: _Request, make: Callable[[], Any] | None, nbytes: int) -> None:
        """A request is answered by the message that `make` makes when its turn has come; without one by none."""
        self._over(one)
        if make is None:
            self._account.give(one.size, self._window)
        else:
            self._outbox.put_later(make, nbytes, self._window, one.size)

    def _over(self, one: _Request) -> None:
        self._count -= 1
        if one.key and self._last.get(one.key) is one:
            del self._last[one.key]
        if self._less is not None and not self._less.done():
            self._less.set_result(None)


class _Request(Asker):
    """A request under way; hears what becomes of it where it was taken the usual way."""

    __slots__ = ("_done", "_ended", "_stream", "key", "size")

    def __init__(self, stream: OipStream, key: _Key | None, size: int) -> None:
        self.key = key
        self.size = size
        self._stream = stream
        self._ended = False
        self._done: asyncio.Future[None] | None = None

    def answered(self, answer: bytes) -> None:
        # As `end`: this is each step's way.
        self._ended = True
        self._stream.answered(self, streamed(answer))
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def failed(self, error: errors.StatestreamError) -> None:
        self.end(lambda: refusal(error, self._name.decode()), ERROR_BYTES)

    def end(self, make: Callable[[], Any] | None, nbytes: int = 0) -> None:
        self._ended = True
        self._stream.ended(self, make, nbytes)
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def over(self) -> None:
        """Returns when it is answered."""
        if not self._ended:
            self._done = self._done or asyncio.get_running_loop().create_future()
            await asyncio.wait([self._done])


def serialized(message: Any) -> bytes:
    """The bytes of an answer."""
    data: bytes = message if type(message) is bytes else message.SerializeToString()
    return data


def refusal(error: Exception, name: str) -> pb.ModelStreamInferResponse:
    """The answer to the request `name` of a stream that failed."""
    failed = told(error)
    response = pb.ModelStreamInferResponse(error_message=f"{failed.reason}: {failed.message}")
    response.infer_response.id = name
    return response


def _sequence_key(request: pb.ModelInferRequest) -> _Key | None:
    """What requests have in common that wait for each other."""
    named = request.parameters.get("sequence_id")
    value = named is not None and (named.string_param or named.int64_param or named.uint64_param)
    return (request.model_name, str(value)) if value else None
