"""One server process from start to stop: startup, serving, drain, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.ma  # np.unique would import it with the first chunk, and hold the loop up for many batches.

from statestream.contract import errors
from statestream_server import housekeeping
from statestream_server.drivers.forecast import Forecaster
from statestream_server.drivers.generate import Generator
from statestream_server.drivers.predict import Predictor
from statestream_server.edges.grpc.port import Grpc
from statestream_server.engine.engine import Engine
from statestream_server.lag import Lag, TurnLoad
from statestream_server.models.files import repository
from statestream_server.models.graphs import runtime
from statestream_server.quarantine.quarantine import Quarantine
from statestream_server.registry import Registry
from statestream_server.server import Readiness, Server
from statestream_server.sessions.admin.copies import Copies
from statestream_server.sessions.admission.accounts import Accounts, Budgets
from statestream_server.sessions.admission.bounds import Bounds
from statestream_server.sessions.admission.intake import Coalescer, Intake
from statestream_server.sessions.checkpointer import Checkpointer, Unsaved
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.ownership.activation import Activation
from statestream_server.sessions.ownership.claims import Claims
from statestream_server.sessions.ownership.deletions import Deletions
from statestream_server.sessions.ownership.departures import Departures
from statestream_server.sessions.ownership.moves import Moves
from statestream_server.sessions.ownership.peers import Peers
from statestream_server.sessions.ownership.placement import Placement
from statestream_server.sessions.ownership.sessions import Sessions
from statestream_server.sessions.ownership.tasks import Tasks
from statestream_server.sessions.ownership.turns import Turns
from statestream_server.sessions.ownership.versions import Versions
from statestream_server.sessions.unary import Unary
from statestream_server.settings import Durability, Settings, StartError, threads_for
from statestream_server.stores import open_store
from statestream_server.stores.base import Store

log = logging.getLogger(__name__)

_COLLECT_EVERY = 5_000
"""Objects that are made and kept before the collector looks for cycles among them."""
_LEAVE_SECONDS = 1.0
"""How long clients get to leave after the go-away before their streams are ended."""


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


async def serve(settings: Settings, told: int | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then drains and leaves. A second signal ends the process at once.

    Args:
        settings: How.
        told: A file descriptor that becomes readable when it is to leave as for a first signal.

    Raises:
        StartError: A port is taken, the store cannot be used, or a device is missing.
    """
    stop, hung_up = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_die, stop)
    if told is not None:
        loop.add_reader(told, _hear, loop, told, hung_up)
    async with contextlib.AsyncExitStack() as leaving:
        starting = asyncio.create_task(leaving.enter_async_context(running(settings)), name="start")
        if not await _started(starting, stop, hung_up):
            log.info("leaving before the start was over")
            return
        server = starting.result()
        _spare_the_collector()
        server.server.quarantine.hear_signals()
        http = f", metrics on http://{settings.host}:{server.http_port}/metrics" if server.http_port else ""
        print(f"ready: gRPC on {settings.host}:{server.port}{http}", flush=True)
        await _first(stop.wait(), hung_up.wait(), server.failed())
        log.info("leaving: finishing what came, saving, at most %.0f s", settings.drain_grace)


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
async def running(settings: Settings) -> AsyncIterator[Running]:
    """A server that runs inside the `async with` block and is drained at its end.

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
        server = _rooms(settings, store, quarantine)
        leaving.callback(server.registry.close)
        # What may be missing or taken comes first: nothing runs yet, and nobody was told of this server.
        readiness = Readiness()
        http = None
        if settings.http_port is not None:
            from statestream_server.edges.http.port import Http  # Its libraries take a tenth of the start.

            http = Http(settings, server, readiness)
            leaving.push_async_callback(http.close)
            await http.start()
        # Probes are answered meanwhile; the port that callers know is not taken yet.
        await server.registry.load_all()
        edge = Grpc(settings, server)
        leaving.push_async_callback(_drain, server, edge, readiness)
        server.engine.start()
        server.lag.start()
        leaving.callback(server.lag.stop)
        server.checkpointer.start()
        keeper = asyncio.create_task(housekeeping.keep(server), name="housekeeping")
        leaving.callback(keeper.cancel)
        await server.lease.start(settings.advertise or _advertised(settings.host, edge.port))
        await edge.start()
        readiness.reason = ""
        yield Running(edge.port, http.port if http is not None else None, server, readiness)


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


def _stop_or_die(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(130)  # Whoever asks twice waits for nothing, not even for the loop to wind up.
    stop.set()


def _hear(loop: asyncio.AbstractEventLoop, told: int, hung_up: asyncio.Event) -> None:
    loop.remove_reader(told)
    hung_up.set()


def _store(settings: Settings) -> Store:
    try:
        return open_store(settings.store)
    except (ValueError, ImportError) as error:
        raise StartError(str(error)) from error


def _rooms(settings: Settings, store: Store, quarantine: Quarantine) -> Server:
    """Wires the rooms; no model is loaded yet."""
    try:
        device = runtime.providers_for(settings.device, settings.threads or threads_for(1))
    except runtime.DeviceError as error:
        raise StartError(str(error)) from error
    if device.note:
        log.info("device %s is the CPU: %s", settings.device, device.note)
    if not settings.models.is_dir():
        raise StartError(f"{settings.models} is no folder; expected {repository.LAYOUT}")
    fingerprint = runtime.fingerprint(device)
    turns = TurnLoad()
    engine, peers, writer = Engine(turns, quarantine), Peers(), uuid.uuid4().bytes
    tasks = Tasks()
    departures, unsaved = Departures(engine, peers, tasks), Unsaved(engine.tables)
    lease = Lease(
        store,
        secrets.token_hex(8),
        settings.checkpoint_interval,
        tables=engine.tables,
        on_fenced=departures.drop,
        on_reset=unsaved.everything,
    )
    checkpointer = Checkpointer(
        store,
        engine,
        lease,
        settings.durability,
        settings.checkpoint_interval,
        unsaved,
        on_durable=peers.durable,
    )
    registry = Registry(
        settings.models,
        engine,
        checkpointer,
        device=device,
        batch_policy=settings.batch_policy,
        max_sessions=settings.limits.max_sessions,
        limits=settings.trial,
        quarantine=quarantine,
    )
    placement = Placement(engine, checkpointer, peers, time.monotonic)
    bounds = Bounds(settings.limits, time.monotonic, placement.make_way)
    gate = checkpointer if settings.durability is Durability.SYNC else lease
    intake = Intake(engine, gate, bounds, time.monotonic)
    coalescer = Coalescer(intake, engine)
    versions = Versions(registry, engine, checkpointer, store)
    lines = Turns()
    claims = Claims(registry, engine, store, checkpointer, placement, versions, lease, departures, lines)
    sessions = Sessions(registry, peers, placement, claims, lines, tasks, time.time)
    deletions = Deletions(engine, store, checkpointer, lease, departures, lines, tasks)
    copies = Copies(
        registry,
        sessions,
        claims,
        deletions,
        engine,
        store,
        checkpointer,
        lease,
        writer,
        most_answer=settings.limits.max_answer_bytes,
        alone=not settings.reuse_port,
        unix=lambda used: time.time() - time.monotonic() + used,
    )
    budgets = Budgets(settings.limits.max_queued_bytes)
    return Server(
        lease.owner,
        fingerprint,
        device.name,
        settings,
        store,
        engine,
        lease,
        checkpointer,
        peers,
        registry,
        sessions,
        deletions,
        departures,
        Moves(peers, time.monotonic),
        tasks,
        Activation(sessions, engine, store, lease),
        Unary(
            sessions,
            engine,
            checkpointer,
            intake,
            copies,
            budgets.steps,
            writer,
            most_steps=settings.limits.max_chunk_steps,
        ),
        copies,
        intake,
        coalescer,
        Accounts(settings.limits.max_queued_bytes, settings.limits.max_window_bytes),
        budgets,
        quarantine,
        Lag(),
        turns,
        Predictor(registry, engine, settings.limits, budgets.predictions),
        Forecaster(engine, settings.limits, budgets.forecasts),
        Generator(registry, engine, settings.limits, budgets.texts),
    )


def _advertised(host: str, port: int) -> str:
    """Where other machines are to find a server that listens on `host`."""
    if host in ("0.0.0.0", "::", "[::]", ""):
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


async def _drain(server: Server, edge: Grpc, readiness: Readiness) -> None:
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
    edge.go_away(_LEAVE_SECONDS)
    try:
        async with asyncio.timeout(server.settings.drain_grace):
            await edge.gone(_LEAVE_SECONDS)
            await edge.stop(_LEAVE_SECONDS)
            for served in server.registry:
                if served.table is not None:
                    rows = np.arange(served.table.capacity)
                    await server.engine.idle(served.table, rows)
            await server.tasks.finished()
            await server.engine.close()
            await server.checkpointer.close()
    except TimeoutError:
        log.error("leaving after %.0f s with work undone: raise --drain-grace", server.settings.drain_grace)
    except errors.StoreUnavailable as error:
        log.error("leaving with sessions unsaved since the last checkpoint: %s", error)
    except Exception:
        log.exception("leaving with sessions unsaved since the last checkpoint")
    await _take_leave(server)


async def _take_leave(server: Server) -> None:
    try:
        await server.lease.close()
    except errors.StoreUnavailable as error:
        log.warning("leaving without a word to the store: %s", error.message)
