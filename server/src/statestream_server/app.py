"""One server process from start to stop: startup, serving, drain, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from statestream.contract import errors
from statestream_server import housekeeping, reloading, warmup
from statestream_server.access.grants import Access
from statestream_server.access.tokens import TokensError
from statestream_server.edges import identity
from statestream_server.edges.grpc.port import Grpc
from statestream_server.quarantine.quarantine import Quarantine
from statestream_server.server import Readiness, Server
from statestream_server.settings import Durability, Settings, StartError, has_console, is_loopback
from statestream_server.signals import Reloading, Stop
from statestream_server.stores import open_store
from statestream_server.stores.base import Store

if TYPE_CHECKING:
    from statestream_server.edges.h2.port import H2
    from statestream_server.edges.http.oip import OipPages
    from statestream_server.edges.http.port import Http
    from statestream_server.tracing import Tracing
    from statestream_server.worker import Worker

log = logging.getLogger(__name__)

_COLLECT_EVERY = 5_000
"""Objects that are made and kept before the collector looks for cycles among them."""
_LEAVE_SECONDS = 1.0
"""How long clients get to leave after the go-away before their streams are ended."""
_TRACED_SECONDS = 2.0
"""How long the last spans may take at the end."""
_TELLING_SHARE = 0.25
"""Of `drain_grace`: within so much of it all are told to leave."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers.

    Attributes:
        port: The gRPC port.
        http_port: The HTTP port, None where there is none.
        server: Its rooms.
        readiness: Whether callers may be sent to it.
    """

    port: int
    http_port: int | None
    server: Server
    readiness: Readiness

    async def failed(self) -> None:
        """Never returns while all is well.

        Raises:
            Exception: What stopped one of the rooms. The process must end: its successor goes on from the store.
        """
        await _first(self.server.engine.failed(), self.server.checkpointer.failed(), self.server.lease.failed())


async def serve(
    settings: Settings,
    reread: Callable[[], tuple[Settings, str]] | None = None,
    connected: socket.socket | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and leaves. A second signal ends the process at once.

    SIGHUP has it read the settings anew, and load the newest version of every model.

    Args:
        settings: How.
        reread: Reads settings and log level anew; None where SIGHUP is not heard.
        connected: To the process of which this one is a worker.

    Raises:
        StartError: A port is taken, the store cannot be used, or a device is missing.
    """
    stop, worker = Stop(), None
    if connected is not None:
        from statestream_server.worker import Worker

        worker = Worker(connected)
    hung_up = worker.left if worker is not None else asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_without_lookups)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.hear)
    async with contextlib.AsyncExitStack() as leaving:
        starting = asyncio.create_task(leaving.enter_async_context(running(settings, worker)), name="start")
        if not await _started(starting, stop, hung_up):
            log.info("leaving before the start was over")
            return
        server = starting.result()
        _spare_the_collector()
        server.server.quarantine.hear_signals()
        if reread is not None:
            reloading = Reloading(server.server, settings, reread)
            loop.add_signal_handler(signal.SIGHUP, reloading.begin)
            leaving.callback(loop.remove_signal_handler, signal.SIGHUP)
        http = f", {settings.http_pages(server.http_port)}" if server.http_port else ""
        where = f"unix:{settings.unix}" if settings.only_unix else f"{settings.host}:{server.port}"
        print(f"ready: gRPC on {where}{http}", flush=True)
        _beside(leaving, "warmup", warmup.after_the_start())
        failures = [server.failed()] if worker is None else [server.failed(), worker.failed()]
        await _first(stop.wait(), hung_up.wait(), *failures)
        log.info("leaving: finishing what came, saving, at most %.0f s", settings.drain_grace)


def _without_lookups(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs what the loop found, but for a name's look-up that outlived its connection: who gave that up said why."""
    if not (isinstance(context.get("exception"), socket.gaierror) and "never retrieved" in context["message"]):
        loop.default_exception_handler(context)


async def _started(starting: asyncio.Task[Running], stop: asyncio.Event, hung_up: asyncio.Event) -> bool:
    """Waits for the start; False where it is asked to leave first. A model that loads is not waited for."""
    asked = [asyncio.create_task(event.wait()) for event in (stop, hung_up)]
    try:
        await asyncio.wait([starting, *asked], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            return True
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return False
    finally:
        for task in asked:
            task.cancel()


def _spare_the_collector() -> None:
    """What was made at start stays; what a step makes goes by its counts alone, so cycles are looked for seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 10, 10)


@asynccontextmanager
async def running(settings: Settings, worker: Worker | None = None) -> AsyncIterator[Running]:
    """A server that runs inside the `async with` block and is drained at its end.

    A `worker` serves the models that the others of its server serve.

    Raises:
        StartError: A port is taken, the store cannot be used, or a device is missing.
    """
    async with contextlib.AsyncExitStack() as leaving:
        store = _store(settings)
        leaving.push_async_callback(store.close)
        try:
            await store.start()
        except errors.StoreUnavailable as error:
            raise StartError(str(error.message)) from error
        quarantine = Quarantine(settings.quarantine)
        quarantine.start()
        leaving.callback(quarantine.close)
        server = Server(settings, store, quarantine)
        leaving.callback(server.registry.loader.close)
        if server.tracing is not None:
            leaving.push_async_callback(_sent, server.tracing)
        access = _access(settings)
        leaving.enter_context(identity.asking(access))
        server.access = access
        # What may be missing or taken comes first: nothing runs yet, and nobody was told of this server.
        readiness = Readiness()
        http, pages = _http(settings, server, readiness)
        if http is not None:
            leaving.push_async_callback(http.close)
            await http.start()
        # Probes are answered meanwhile; the port that callers know is not taken yet, only looked at.
        _check_port(settings)
        if worker is None:
            await server.registry.load_all()
        else:
            await worker.join(server, readiness)
        _check_serving(settings, server)
        edge = _edge(settings, server, readiness)
        leaving.push_async_callback(_drain, server, edge, readiness, pages)
        server.engine.start()
        server.lag.start()
        leaving.callback(server.lag.stop)
        server.checkpointer.start()
        _beside(leaving, "housekeeping", housekeeping.keep(server))
        if access is not None:
            _beside(leaving, "tokens", access.keep())
        if reloading.is_wanted(settings):
            _beside(leaving, "watch", reloading.watch(server))
        await server.lease.start(settings.advertise or _advertised(settings.host, edge.port))
        if settings.rebalance and settings.durability is not Durability.NONE and server.store.survives.process_kill:
            _beside(leaving, "balance", server.balance.keep())
        await edge.start()
        readiness.reason = ""
        yield Running(edge.port, (http.port or None) if http is not None else None, server, readiness)


def _http(settings: Settings, server: Server, readiness: Readiness) -> tuple[Http | None, OipPages | None]:
    """The HTTP port, and what answers the Open Inference Protocol there; None for what there is not.

    Where a caller's certificate is all that is asked for, and this port does not ask for it, nobody is answered here.
    """
    if settings.http_port is None and not settings.http_unix:
        return None, None
    from statestream_server.edges.http.oip import OipPages
    from statestream_server.edges.http.pages import ServerPages  # Its libraries take a tenth of the start.
    from statestream_server.edges.http.port import Http

    closed = settings.tls_clients is not None and server.access is None and not settings.http_tls
    pages = None if closed else OipPages(server, readiness)
    routes = pages.routes() if pages is not None else []
    if has_console(settings):
        from statestream_server.edges.http.console import pages as console

        routes += console.routes(server)

    def refused() -> None:
        server.refused_connections["http"] += 1

    return Http(settings, ServerPages(server, readiness), routes, refused), pages


def _beside(leaving: contextlib.AsyncExitStack, name: str, work: Coroutine[Any, Any, None]) -> None:
    """Has something run beside the steps until the server leaves."""
    task = asyncio.create_task(work, name=name)
    leaving.callback(task.cancel)


def _check_port(settings: Settings) -> None:
    """Finds a port that is taken before models are loaded, which may take minutes.

    Raises:
        StartError: It is, or the address is not this machine's.
    """
    if settings.reuse_port or settings.only_unix or not settings.port:
        return
    host = settings.host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        socket.create_server((address[0], settings.port), family=family).close()
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port}: the port is taken, or the address is not this"
            " machine's; is another server running there? --port 0 takes any free port"
        ) from error


def _access(settings: Settings) -> Access | None:
    """The tokens that callers must show.

    Raises:
        StartError: They cannot be read.
    """
    if settings.tokens is None:
        return None
    if settings.tls_certificate is None and not is_loopback(settings.host):
        log.warning("tokens pass in clear on %s: whoever listens there has them; see --tls-certificate", settings.host)
    elif settings.http_port is not None and not settings.http_tls and not is_loopback(settings.host):
        log.warning("tokens that are shown to the HTTP port of %s pass in clear; see --http-tls", settings.host)
    try:
        return Access(settings.tokens)
    except TokensError as error:
        raise StartError(str(error)) from error


def _edge(settings: Settings, server: Server, readiness: Readiness) -> Grpc | H2:
    if settings.edge == "h2":
        from statestream_server.edges.h2.port import H2  # Its library is nobody else's to wait for.

        return H2(settings, server, readiness)
    return Grpc(settings, server, readiness)


def _check_serving(settings: Settings, server: Server) -> None:
    """Checks that of files that were named one by one, one serves at least: no other will come."""
    failures = server.registry.failures
    if failures and not [*server.registry] and not settings.allow_empty and not any(map(Path.is_dir, settings.models)):
        raise StartError(next(iter(failures.values())))


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    """Waits for the first of some things, and raises what it raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


def _store(settings: Settings) -> Store:
    try:
        return open_store(settings.store)
    except (ValueError, ImportError) as error:
        raise StartError(str(error)) from error


def _advertised(host: str, port: int) -> str:
    """Where other machines are to find a server that listens on `host`."""
    if host in ("0.0.0.0", "::", "[::]", ""):
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


async def _drain(server: Server, edge: Grpc | H2, readiness: Readiness, pages: OipPages | None) -> None:
    """No new sessions, finish what came, save, leave. Where the engine stopped, leave: the store has the truth."""
    server.sessions.draining, readiness.reason = True, "leaving"
    await edge.leaving()
    if server.engine.broken:
        await edge.stop(None)
        await _take_leave(server)
        return
    # What is saved now, clients need not send again to the server that they move to.
    with contextlib.suppress(TimeoutError, errors.StoreUnavailable):
        async with asyncio.timeout(_LEAVE_SECONDS):
            await server.checkpointer.checkpoint()
    grace = server.settings.drain_grace
    try:
        async with asyncio.timeout(grace):
            await edge.send_away(_LEAVE_SECONDS, grace * _TELLING_SHARE)
            await edge.gone(_LEAVE_SECONDS)
            await edge.stop(_LEAVE_SECONDS)
            if pages is not None:
                await pages.finished(_LEAVE_SECONDS)
            for served in server.registry:
                if served.table is not None:
                    rows = np.arange(served.table.capacity)
                    await server.engine.idle(served.table, rows)
            await server.tasks.finished()
            await server.engine.close()
            await server.checkpointer.close()
    except TimeoutError:
        log.error("leaving after %.0f s with work undone: raise --drain-grace", grace)
    except errors.StoreUnavailable as error:
        log.error("leaving with sessions unsaved since the last checkpoint: %s", error)
    except Exception:
        log.exception("leaving with sessions unsaved since the last checkpoint")
    await _take_leave(server)


async def _sent(tracing: Tracing) -> None:
    """Sends the spans that are left, as far as somebody takes them soon."""
    sending = threading.Thread(target=tracing.close, name="tracing", daemon=True)
    sending.start()
    await asyncio.to_thread(sending.join, _TRACED_SECONDS)


async def _take_leave(server: Server) -> None:
    try:
        await server.lease.close()
    except errors.StoreUnavailable as error:
        log.warning("leaving without a word to the store: %s", error.message)
