"""The channel between a server's first process and a worker: each asks the other, a line of JSON at a time."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from google.rpc import status_pb2

from statestream.contract import errors

log = logging.getLogger(__name__)

_LONGEST: Final = 64 << 20
"""Bytes of a line: metrics of many models are some hundred thousand."""

Answer = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""Answers a question, by name, with JSON values."""


class Gone(Exception):
    """The process at the other end is not there any more; what it was asked may be done or not."""


class Channel:
    """One end. Questions are answered beside each other; what is asked first is begun first."""

    def __init__(self, answer: Answer) -> None:
        """Not connected yet."""
        self._answer = answer
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self._tasks = set[asyncio.Task[None]]()
        self._writer: asyncio.StreamWriter | None = None
        self._up = asyncio.Event()
        self._closed = False

    async def run(self, connected: socket.socket) -> None:
        """Answers and hears until the other end is gone."""
        reader, self._writer = await asyncio.open_connection(sock=connected, limit=_LONGEST)
        self._up.set()
        try:
            while line := await reader.readline():
                self._hear(json.loads(line))
        except (OSError, ValueError) as error:
            log.debug("a channel broke: %s", error)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the channel; whoever waits for an answer hears that the other is gone."""
        self._closed = True
        self._up.set()
        if self._writer is not None:
            self._writer.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Gone())

    async def ask(self, what: str, **fields: Any) -> Any:
        """Asks the other end; cancelled, the answer is not heard, and what was asked is done all the same.

        Raises:
            Gone: It is not there any more.
            StatestreamError: It answered with that.
        """
        await self._up.wait()
        if self._closed:
            raise Gone
        self._last += 1
        number, future = self._last, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._send({"number": number, "ask": what, **fields})
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._writer is not None and not self._closed:
            self._writer.write(json.dumps(message).encode() + b"\n")

    def _hear(self, message: dict[str, Any]) -> None:
        number, what = message.pop("number"), message.pop("ask", None)
        if what is not None:
            task = asyncio.create_task(self._reply(number, what, message), name=f"answer-{what}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if "error" in message:
            status = status_pb2.Status.FromString(base64.b64decode(message["error"]))
            future.set_exception(errors.from_status(status))
        else:
            future.set_result(message["answer"])

    async def _reply(self, number: int, what: str, fields: Mapping[str, Any]) -> None:
        try:
            self._send({"number": number, "answer": await self._answer(what, fields)})
        except errors.StatestreamError as error:
            self._refuse(number, error)
        except Gone:
            self._refuse(number, errors.Unavailable("a process of this server ended meanwhile; try again"))
        except Exception as error:
            log.exception("%s was not done", what)
            self._refuse(number, errors.InternalError(f"{what}: {error}"))

    def _refuse(self, number: int, error: errors.StatestreamError) -> None:
        data = errors.to_status(error).SerializeToString()
        self._send({"number": number, "error": base64.b64encode(data).decode()})
