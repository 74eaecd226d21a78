"""The port of the HTTP/2 edge: its sockets, its connections, and how they are told to leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from time import monotonic
from typing import Final

from statestream_server.edges.grpc.table import Methods
from statestream_server.edges.h2.connection import LINGER_SECONDS, Connection
from statestream_server.edges.handshakes import Handshakes
from statestream_server.edges.sockets import listening, tls
from statestream_server.edges.turns import Turns
from statestream_server.engine.engine import FEW_WAITING
from statestream_server.server import Readiness, Server
from statestream_server.settings import ANSWER_OVERHEAD, Settings

_LOOKS: Final = 2.0
"""Seconds between two looks at what takes too long."""
_ROUND_TRIP: Final = 0.5
"""Seconds for calls that are on their way when clients are told to begin no more."""


class H2(Methods):
    """The gRPC port of a server, on the loop of its process."""

    def __init__(self, settings: Settings, server: Server, readiness: Readiness) -> None:
        """Takes the port; nobody is answered yet. `readiness` says whether callers may be sent here.

        Raises:
            StartError: The port is taken, or the address is not this machine's; or there is no such certificate.
        """
        super().__init__(settings, server, readiness)
        # At DEBUG it tells every header, tokens too, and takes longer for that than for anything else.
        logging.getLogger("hpack").setLevel(logging.INFO)
        self.loop = asyncio.get_running_loop()
        self.most_in = settings.limits.max_message_bytes
        self.most_out = settings.limits.max_answer_bytes + ANSWER_OVERHEAD
        self.connections = set[Connection]()
        self.turns = Turns(self.loop, lambda: server.engine.queued > FEW_WAITING)
        server.engine.ended.append(self.turns.flush)
        server.connected = lambda: (len(self.connections), sum(len(one.wire.calls) for one in self.connections))
        self.most_connections = settings.max_connections
        self.refused_connections = server.refused_connections
        self._reader_seconds = settings.reader_timeout
        context = tls(settings, ["h2"])
        self._handshakes = None
        if context is not None:
            self._handshakes = Handshakes(context, self._connection, settings.max_connections, self.refused)
        self._unix = settings.unix
        self._sockets = []
        if not settings.only_unix:
            self._sockets = listening(settings.host, settings.port, reuse_port=settings.reuse_port)
        self.port = int(self._sockets[0].getsockname()[1]) if self._sockets else 0
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begins to answer; health checks say so."""
        if self._handshakes is not None:
            self._handshakes.start(self._sockets)
        else:
            for listener in self._sockets:
                self._servers.append(await self.loop.create_server(self._connection, sock=listener))
        if self._unix:
            self._servers.append(await self.loop.create_unix_server(self._connection, self._unix))
        self._look()
        await self.serving()

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls; ends those that are under way after `grace` seconds, or at once."""
        for server in self._servers:
            server.close()
        if self._handshakes is not None:
            self._handshakes.stop()
        if self._timer is not None:
            self._timer.cancel()
        if grace:
            for connection in [*self.connections]:
                connection.leave()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.sleep(min(_ROUND_TRIP, grace / 2))
                    for connection in [*self.connections]:
                        connection.close()
                    await self._emptied()
        for connection in [*self.connections]:
            connection.refuse(0, "the server left")
        if self._handshakes is not None:
            await self._handshakes.close()
        # A client that does not close its side is not waited for longer than the words need to get there.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await self._emptied()
        for connection in [*self.connections]:
            connection.abort()
        await self._emptied()

    def refused(self) -> None:
        """A connection was one too many."""
        self.refused_connections["grpc"] += 1

    def _connection(self) -> Connection:
        return Connection(self)

    async def _emptied(self) -> None:
        while self.connections:  # noqa: ASYNC110  # Only where a port closes anybody waits for them.
            await asyncio.sleep(0.02)

    def _look(self) -> None:
        now = monotonic()
        for connection in [*self.connections]:
            connection.look(now, self._reader_seconds)
        self._timer = self.loop.call_later(_LOOKS, self._look)
