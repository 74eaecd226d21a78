"""What the HTTP port of one process says of it."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, generate_latest

from statestream_server.edges.http.metrics import ServerCollector
from statestream_server.server import Readiness, Server

_FRESH_SECONDS = 0.1
"""How old the text of the metrics may be: making it costs the loop a millisecond or two, whoever asks how often."""


class ServerPages:
    """See `port.Pages`."""

    def __init__(self, server: Server, readiness: Readiness) -> None:
        """Of a server in this process."""
        self._readiness = readiness
        self._metrics = CollectorRegistry()
        self._metrics.register(ServerCollector(server))
        self._text, self._made = b"", float("-inf")

    def lives(self) -> tuple[bool, str]:
        """The process lives: its loop answers."""
        return True, "alive"

    def serves(self) -> tuple[bool, str]:
        """Whether it has started and does not leave."""
        reason = self._readiness.reason
        return not reason, f"not ready: {reason}" if reason else "ready"

    async def metrics(self) -> bytes:
        """The figures as they are now."""
        now = time.monotonic()
        if now - self._made > _FRESH_SECONDS:
            self._text, self._made = generate_latest(self._metrics), now
        return self._text
