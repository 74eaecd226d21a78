"""A TCP proxy between client and server that does what networks do: cut, stall, delay, lose the way back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

_PIECE = 1 << 16


class Proxy:
    """Forwards connections from its own port to a server's.

    Attributes:
        address: Where it listens.
        target: Where it leads.
        refusing: New connections are refused.
        losing: What the server answers is thrown away; what the client sends still arrives.
        delay: Seconds that every piece is held up, each way.
        lost: Set once an answer was thrown away since `losing` was set to True.
    """

    def __init__(self, target: str) -> None:
        self.refusing = False
        self.losing = False
        self.delay = 0.0
        self.lost = asyncio.Event()
        self.address = ""
        self.target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens on a free port of this machine."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"

    def cut(self) -> None:
        """Resets every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Nothing passes any more, and nobody is told: both ends see an open connection."""
        self._flowing.clear()

    def flow(self) -> None:
        """What was held up passes, and what follows."""
        self._flowing.set()

    def lose_replies(self) -> None:
        """From now on requests arrive and answers do not."""
        self.lost.clear()
        self.losing = True

    async def close(self) -> None:
        """Ends everything."""
        self._server.close()
        self.flow()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self.refusing:
                return
            host, _, port = self.target.rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            self._writers.add(far_writer)
            try:
                await asyncio.gather(
                    self._pump(reader, far_writer, answers=False), self._pump(far_reader, writer, answers=True)
                )
            finally:
                self._writers.discard(far_writer)
                far_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            return  # The other end is gone, or the test is over.
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        while True:
            data = await reader.read(_PIECE)
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flowing.wait()
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            if answers and self.losing:
                self.lost.set()
                continue
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def proxies(targets: list[str]) -> AsyncIterator[list[Proxy]]:
    """A proxy in front of each address."""
    made = [Proxy(target) for target in targets]
    async with contextlib.AsyncExitStack() as stack:
        for proxy in made:
            await proxy.start()
            stack.push_async_callback(proxy.close)
        yield made
