"""The HTTP port: whether the process lives, whether it serves, its metrics, and what else it is given."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from statestream_server.access.certificates import NOBODY, RELAYED, Names, of_peer, relayed
from statestream_server.edges.sockets import listening, on_unix, tls
from statestream_server.settings import Settings

_WHY_FULL = b"this server has as many connections as it takes (--max-http-connections), all with a request; try again\n"
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_WHY_FULL), _WHY_FULL)
)
"""What a connection hears for which none can make room."""
_REQUEST_SECONDS = 10.0
"""How long a connection may take to bring a whole request head."""
_MOST_RELAYED = 1 << 20
"""Bytes of a head that is handed on: a caller's, and the names of his certificate, of which TLS takes 100 KiB."""


class Pages(Protocol):
    """What the paths answer."""

    def lives(self) -> tuple[bool, str]:
        """Whether it lives, and what is said of that."""

    def serves(self) -> tuple[bool, str]:
        """Whether callers may be sent here, and what is said of that."""

    async def metrics(self) -> bytes:
        """Metrics as Prometheus reads them."""


def names_of(request: Request) -> Names:
    """The names of the certificate that a request's caller showed, here or to the process that hands it on."""
    if getattr(request.state, "relayed", False):
        return relayed(request.headers.get(RELAYED, ""))
    found: Names = getattr(request.state, "names", NOBODY)
    return found


class Http:
    """The HTTP port of a server, on the loop of its process."""

    def __init__(
        self,
        settings: Settings,
        pages: Pages,
        more: Sequence[Route] = (),
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the port, or the path of a Unix socket; nobody is answered yet. `more` is served beside the pages.

        `refused` hears of a connection that was one too many.

        Raises:
            StartError: The port is taken.
        """
        most = settings.max_http_connections
        if settings.http_unix:
            self._sockets, self.port = [on_unix(settings.http_unix, most)], 0
        else:
            self._sockets = listening(settings.host, settings.http_port or 0, most, flag="--http-port")
            self.port = int(self._sockets[0].getsockname()[1])
        config = uvicorn.Config(
            _application(pages, more),
            http=_connections(settings.reader_timeout, most, refused, relayed=bool(settings.http_unix)),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # A caller's broken request is not worth a line of ours.
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(_REQUEST_SECONDS),
            h11_max_incomplete_event_size=_MOST_RELAYED if settings.http_unix else None,
        )
        secured = settings.http_tls and not settings.http_unix
        self._server = _Embedded(config, tls(settings, ["http/1.1"]) if secured else None)

    async def start(self) -> None:
        """Begins to answer."""
        await self._server.begin(self._sockets)

    async def close(self) -> None:
        """Ends every connection and gives the port back."""
        await self._server.end(self._sockets)


class _Embedded(uvicorn.Server):
    """A server in a process that has signals and a loop of its own."""

    def __init__(self, config: uvicorn.Config, secured: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._secured = secured

    async def begin(self, listeners: list[socket.socket]) -> None:
        self.config.load()
        self.config.ssl = self._secured  # The same as the gRPC port's, which uvicorn's own settings cannot say.
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets=listeners)

    async def end(self, listeners: list[socket.socket]) -> None:
        self.force_exit = True  # Nobody's scrape is worth a second of the leaving.
        if self.started:
            await self.shutdown(sockets=listeners)
        for listener in listeners:
            listener.close()


class _Connection(H11Protocol):
    """A connection that must bring its request in time, and makes room where there are too many."""

    _timer: asyncio.TimerHandle | None = None
    """Runs while no request is being answered."""
    _reading: asyncio.TimerHandle | None = None
    """Runs while its reader takes nothing of what was written."""
    reader_seconds = 20.0
    """What it may take nothing for."""
    refused: Callable[[], None] = staticmethod(lambda: None)
    """Hears of one too many."""
    relayed = False
    """Whether what it brings is handed on by the first process of several, which alone reaches its socket."""
    most = 128
    """Connections that may be open; of those without a request the one silent for longest goes for a new one."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.relayed:
            self.app_state = {**self.app_state, "relayed": True}
        elif (tls := transport.get_extra_info("ssl_object")) is not None:
            self.app_state = {**self.app_state, "names": of_peer(tls)}
        if len(self.connections) > self.most:
            waiting = [one for one in self.connections if isinstance(one, _Connection) and one._timer is not None]
            if not waiting:
                self.refused()
                transport.write(_FULL)
                transport.close()
                return
            min(waiting, key=lambda one: one._timer.when() if one._timer is not None else 0.0).transport.abort()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        if self._reading is not None:
            self._reading.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(self.reader_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._wait()

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(_REQUEST_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _connections(reader_seconds: float, most: int, refused: Callable[[], None], *, relayed: bool) -> type[_Connection]:
    """Connections of which there may be so many, and whose readers may take nothing for so long."""
    # uvicorn makes them.
    more = {"reader_seconds": reader_seconds, "most": most, "refused": staticmethod(refused), "relayed": relayed}
    return type("_Connection", (_Connection,), more)


def _application(pages: Pages, more: Sequence[Route]) -> Starlette:
    async def probe(what: Callable[[], tuple[bool, str]]) -> Response:
        good, said = what()
        return PlainTextResponse(f"{said}\n", 200 if good else 503)

    async def metrics(request: Request) -> Response:
        return Response(await pages.metrics(), media_type=CONTENT_TYPE_LATEST)

    async def nothing(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"there is nothing at this path; there are {', '.join([*paths, *below])}\n", 404)

    async def healthz(request: Request) -> Response:
        return await probe(pages.lives)

    async def readyz(request: Request) -> Response:
        return await probe(pages.serves)

    paths = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    found = {"/" + route.path.split("/")[1] for route in more}
    below = sorted(f"{path}/…" for path in found - {"/", *paths})
    routes = [Route(path, page, methods=["GET"]) for path, page in paths.items()]
    return Starlette(routes=[*routes, *more], exception_handlers={404: nothing})
