"""grpcio under the table of methods."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import grpc

from statestream_server.edges.grpc.table import Methods
from statestream_server.server import Readiness, Server
from statestream_server.settings import ANSWER_OVERHEAD, Settings, StartError

log = logging.getLogger(__name__)
_AGAIN: Final = 0.05
"""Seconds between two tries to have a port that is being closed."""


class Grpc(Methods):
    """The gRPC port of a server, on the loop of its process."""

    def __init__(self, settings: Settings, server: Server, readiness: Readiness) -> None:
        """Takes the port; nobody is answered yet. `readiness` says whether callers may be sent here.

        Raises:
            StartError: The port is taken, or the address is not this machine's.
        """
        super().__init__(settings, server, readiness)
        logging.getLogger("grpc._cython.cygrpc").addFilter(_concerns_us)
        self._settings, self.port = settings, settings.port
        self._server, self.port = self._made()
        self._stopping = False
        self._watching: asyncio.Task[None] | None = None

    def _made(self) -> tuple[grpc.aio.Server, int]:
        """A server of the library and its port; 0 where it has none."""
        settings, port = self._settings, 0
        server = grpc.aio.server(options=_options(settings))
        server.add_generic_rpc_handlers((self.chain,))
        if not settings.only_unix:
            port = _listen(server, f"{settings.host}:{self.port}", _credentials(settings))
        if settings.unix:
            _listen(server, f"unix:{settings.unix}", None)
        return server, port

    async def start(self) -> None:
        """Begins to answer; health checks say so."""
        await self._server.start()
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="port")
        await self.serving()

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls; ends those that are under way after `grace` seconds, or at once."""
        self._stopping = True
        await self._server.stop(grace)
        if self._watching is not None:
            await self._watching  # Not cancelled: that would end what `stop` waits for, too.

    async def _watch(self) -> None:
        """Opens the port anew where the library closed it: a method's name that is no UTF-8 is enough for that.

        Its connections end then; clients come again, and go on where they were.
        """
        while True:
            try:
                await self._server.wait_for_termination()
                return
            except Exception as error:
                if self._stopping:
                    return
                log.warning("gRPC's library ended its server, the port is opened anew: %r", error)
            while not self._stopping:
                try:
                    self._server, _ = self._made()
                    await self._server.start()
                    break
                except (StartError, OSError):
                    await asyncio.sleep(_AGAIN)  # It is not free yet, or the certificate cannot be read now.


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(
            f"cannot listen on {address}: the port is taken, or the address is not this machine's; is another"
            " server running there?"
        ) from error


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    clients = settings.tls_clients
    return grpc.ssl_server_credentials(
        [(settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())],
        root_certificates=None if clients is None else clients.read_bytes(),
        require_client_auth=clients is not None,
    )


def _options(settings: Settings) -> list[tuple[str, int]]:
    limits = settings.limits
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_answer_bytes + ANSWER_OVERHEAD),
        ("grpc.http2.lookahead_bytes", 4 << 20),
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.http2.write_buffer_size", 1 << 20),
        # A flood of calls is held at its own connection; what others begin meanwhile waits and is not dropped.
        ("grpc.max_concurrent_streams", 512),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server.max_pending_requests", 8192),
        ("grpc.server.max_pending_requests_hard_limit", 16384),
        # Two servers on one port share its connections without a word: only workers of one server mean it.
        ("grpc.so_reuseport", int(settings.reuse_port)),
        # Clients ping idle streams; without these the server answers them with "too many pings".
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _concerns_us(record: logging.LogRecord) -> bool:
    """Whether what grpcio logs is a fault: where a caller left before its answer did, it logs a traceback too."""
    return not record.getMessage().startswith("ExecuteBatchError")
