"""TLS handshakes of a port: those that are under way, which a port that closes has to end as well."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final

_SECONDS: Final = 10.0
"""How long a handshake may take."""


class Handshakes:
    """Lets connections in once they speak TLS.

    `create_server(ssl=…)` does so, too, but nobody can ask it which handshakes are under way: they outlive the port.
    """

    def __init__(self, context: ssl.SSLContext, serve: Callable[[], asyncio.Protocol], most: int) -> None:
        """Of at most so many at a time.

        `serve` makes the protocol of a connection; it may hear data before it hears of the connection.
        """
        self._context, self._serve, self._most = context, serve, most
        self._under_way = set[asyncio.Task[None]]()

    def __len__(self) -> int:
        return len(self._under_way)

    def arrival(self) -> asyncio.Protocol:
        """The protocol of a socket that was accepted."""
        return _Arrival(self)

    async def close(self) -> None:
        """Ends those that are under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def begin(self, transport: asyncio.Transport) -> None:
        """Shakes hands on a socket."""
        if len(self._under_way) >= self._most:
            transport.abort()  # Without a handshake nothing can be said.
            return
        transport.pause_reading()
        task = asyncio.get_running_loop().create_task(self._shake(transport))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _shake(self, transport: asyncio.Transport) -> None:
        protocol, made = self._serve(), False
        try:
            secured: Any = await asyncio.get_running_loop().start_tls(
                transport, protocol, self._context, server_side=True, ssl_handshake_timeout=_SECONDS
            )
            if secured is not None and not secured.is_closing():
                protocol.connection_made(secured)
                made = True
        except OSError:
            pass  # ssl.SSLError, a timeout and a lost connection are among them: nobody is there to be told.
        finally:
            if not made:
                transport.abort()


class _Arrival(asyncio.Protocol):
    def __init__(self, handshakes: Handshakes) -> None:
        self._handshakes = handshakes

    def connection_made(self, transport: Any) -> None:
        self._handshakes.begin(transport)
