"""TLS handshakes of a port: those that are under way, which a port that closes has to end as well."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

log = logging.getLogger(__name__)

_SECONDS: Final = 10.0
"""How long a handshake may take."""
_TOGETHER: Final = 64
"""Connections that one turn of the loop accepts of a listener."""
_AGAIN: Final = 0.5
"""Seconds until a listener is asked again that could not accept: there were no more files, or no memory."""


class Handshakes:
    """Accepts connections, and lets them in once they speak TLS.

    `create_server(ssl=…)` does so, too, but nobody can ask it which handshakes are under way: they outlive the port.
    `start_tls` on what a server without TLS accepted comes too late: uvloop may have read the first bytes by then, and
    nobody had them, so both sides wait.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        serve: Callable[[], asyncio.Protocol],
        most: int,
        refused: Callable[[], None],
    ) -> None:
        """Of at most so many at a time; `refused` hears of one more. `serve` makes the protocol of a connection."""
        self._context, self._serve, self._most, self._refused = context, serve, most, refused
        self._under_way = set[asyncio.Task[None]]()
        self._listeners: list[socket.socket] = []

    def __len__(self) -> int:
        return len(self._under_way)

    def start(self, listeners: Sequence[socket.socket]) -> None:
        """Begins to accept on these, which are closed by `stop`."""
        self._listeners += listeners
        for listener in listeners:
            listener.setblocking(False)
            self._listen(listener)

    def stop(self) -> None:
        """Accepts no more."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners.clear()

    async def close(self) -> None:
        """Ends those that are under way, and accepts no more."""
        self.stop()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _listen(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_TOGETHER):
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("connections cannot be accepted, those that come wait: %s", error)
                loop.remove_reader(listener)
                loop.call_later(_AGAIN, self._listen, listener)
                return
            if len(self._under_way) >= self._most:
                accepted.close()  # Without a handshake nothing can be said.
                self._refused()
                continue
            accepted.setblocking(False)
            task = loop.create_task(self._shake(accepted))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _shake(self, accepted: socket.socket) -> None:
        # ssl.SSLError, a timeout and a lost connection are among them, and names in a certificate that are no text:
        # nobody is there to be told.
        with contextlib.suppress(OSError, UnicodeDecodeError):
            await asyncio.get_running_loop().connect_accepted_socket(
                self._serve, accepted, ssl=self._context, ssl_handshake_timeout=_SECONDS
            )
