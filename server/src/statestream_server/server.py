"""The rooms of one server process, wired together: what the edges call. Starting and stopping is app.py's."""

from __future__ import annotations

import logging
import math
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from statestream_server.access.grants import Access
from statestream_server.aliasing import Aliasing
from statestream_server.drivers.gathered import Gathering
from statestream_server.drivers.predict import Predictor
from statestream_server.engine.alone import Alone
from statestream_server.engine.engine import Engine
from statestream_server.lag import Lag, TurnLoad
from statestream_server.loader import Loader
from statestream_server.models.graphs import runtime
from statestream_server.quarantine.quarantine import Quarantine
from statestream_server.registry import Registry
from statestream_server.requests import Requests
from statestream_server.selection import Selection
from statestream_server.sessions.admin.admin import Admin
from statestream_server.sessions.admin.copies import Copies
from statestream_server.sessions.admission.accounts import Accounts, Budgets, Coming
from statestream_server.sessions.admission.bounds import Bounds
from statestream_server.sessions.admission.coalescer import Coalescer
from statestream_server.sessions.admission.intake import Intake
from statestream_server.sessions.checkpointer import Checkpointer, Unsaved
from statestream_server.sessions.express import Express
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.ownership.activation import Activation
from statestream_server.sessions.ownership.balance import Balance
from statestream_server.sessions.ownership.claims import Claims
from statestream_server.sessions.ownership.deletions import Deletions
from statestream_server.sessions.ownership.evictions import Evictions
from statestream_server.sessions.ownership.hibernation import Hibernation
from statestream_server.sessions.ownership.moves import Moves
from statestream_server.sessions.ownership.placement import Placement
from statestream_server.sessions.ownership.sessions import Sessions
from statestream_server.sessions.ownership.streams import Streams
from statestream_server.sessions.ownership.tasks import Tasks
from statestream_server.sessions.ownership.turns import Turns
from statestream_server.sessions.ownership.versions import Versions
from statestream_server.sessions.unary import Unary
from statestream_server.settings import Durability, Settings, StartError, check_models, threads_for
from statestream_server.stores.base import Store

if TYPE_CHECKING:
    from statestream_server.drivers.forecast import Forecaster
    from statestream_server.drivers.generate import Generator
    from statestream_server.tracing import Tracing

log = logging.getLogger(__name__)


class Server:
    """One server process.

    Attributes:
        id: A random name for this process; records name their owner by it.
        fingerprint: Runtime, provider and hardware, for people.
        device: Where models run: "cpu", "cuda:0".
    """

    def __init__(self, settings: Settings, store: Store, quarantine: Quarantine) -> None:
        """Wires the rooms; no model is loaded yet.

        Raises:
            StartError: A device is missing, or nothing lies where models are expected.
        """
        device, limits, clock = _device(settings), settings.limits, time.monotonic
        self.id, self.fingerprint, self.device = secrets.token_hex(8), runtime.fingerprint(device), device.name
        self.settings, self.store, self.quarantine, self._limits = settings, store, quarantine, limits
        self.lag, self.turns = Lag(), TurnLoad()
        self.access: Access | None = None
        """The tokens that callers show; None where anybody may call."""
        self.connected: Callable[[], tuple[int, int]] | None = None
        """How many connections and calls there are; None where the edge does not know."""
        self.refused_connections = {"grpc": 0, "http": 0}
        """By door: connections beyond the most that it takes; grpcio tells of none."""
        self.engine = engine = Engine(self.turns, quarantine)
        self.tracing = _tracing(settings, self.id)
        engine.tracer, engine.on_device = self.tracing, device.name != "cpu"
        engine.slow = settings.slow_step or math.inf
        self.streams, self.tasks = streams, tasks = Streams(), Tasks()
        self.evictions = evictions = Evictions(engine, streams, tasks)
        unsaved, interval = Unsaved(engine.tables), settings.checkpoint_interval
        self.lease = lease = Lease(
            store,
            self.id,
            interval,
            tables=engine.tables,
            on_fenced=evictions.drop,
            on_reset=unsaved.everything,
            load=lambda: streams.handles,
        )
        self.checkpointer = checkpointer = Checkpointer(
            store, engine, lease, settings.durability, interval, unsaved, on_durable=streams.durable
        )
        checkpointer.slow = engine.slow
        loader = Loader(
            device,
            settings.batch_policy,
            settings.trial,
            quarantine,
            proofs=settings.proofs,
            trust=settings.trust,
        )
        self.registry = registry = Registry(
            settings.models, engine, checkpointer, loader, max_sessions=limits.max_sessions
        )
        self.requests = Requests(lambda name: any(served.model.name == name for served in registry))
        hibernation = Hibernation(engine, checkpointer, streams)
        placement = Placement(engine, checkpointer, streams, hibernation, clock)
        gate = checkpointer if settings.durability is Durability.SYNC else lease
        self.intake = Intake(
            engine, Alone(engine, quarantine), gate, Bounds(limits, clock, hibernation.make_way), clock
        )
        self.coalescer = Coalescer(self.intake, engine)
        versions, lines, order = Versions(registry, engine, checkpointer, store), Turns(), Turns()
        claims = Claims(registry, engine, store, checkpointer, placement, versions, lease, evictions, lines)
        self.sessions = Sessions(registry, streams, placement, hibernation, claims, lines, tasks, time.time)
        self.selection = Selection(registry, self.sessions)
        self.aliasing = Aliasing(registry, self.selection, settings.models)
        self.deletions = Deletions(engine, store, checkpointer, lease, evictions, lines, tasks)
        self.moves, self.activation = Moves(streams, clock), Activation(self.sessions, engine, store, lease)
        self.balance = Balance(store, lease, streams, self.moves, checkpointer.tables, clock)
        writer = uuid.uuid4().bytes  # Of those who name none.
        self.copies = Copies(
            registry, self.sessions, claims, engine, store, checkpointer, lease, alone=not settings.reuse_port
        )
        self.admin = Admin(
            registry,
            self.sessions,
            self.copies,
            self.deletions,
            engine,
            store,
            checkpointer,
            writer,
            most_answer=limits.max_answer_bytes,
            unix=lambda used: time.time() - time.monotonic() + used,
        )
        self.accounts = Accounts(limits.max_queued_bytes, limits.max_window_bytes)
        self.budgets = budgets = Budgets(limits.max_queued_bytes, engine.wait)
        self.coming = Coming(budgets.steps, clock)
        self.unary = Unary(
            self.sessions,
            engine,
            checkpointer,
            self.intake,
            self.coalescer,
            order,
            budgets.steps,
            self.coming,
            self.lease,
            writer,
            most_steps=limits.max_chunk_steps,
        )
        self.express = Express(self.sessions, streams, self.coalescer, checkpointer, order, budgets.steps, tasks)
        self.predictor = Predictor(registry, engine, limits, budgets.predictions)
        self.gathering = Gathering(self.predictor, engine, budgets.predictions)

    @cached_property
    def forecaster(self) -> Forecaster:
        """What drives forecasts; a server answers before all that they need is imported."""
        from statestream_server.drivers.forecast import Forecaster

        return Forecaster(self.engine, self._limits, self.budgets.forecasts)

    @cached_property
    def generator(self) -> Generator:
        """What drives texts; as above."""
        from statestream_server.drivers.generate import Generator

        return Generator(self.registry, self.engine, self._limits, self.budgets.texts)


def _tracing(settings: Settings, server: str) -> Tracing | None:
    if settings.tracing == "off":
        return None
    try:
        from statestream_server import tracing
    except ImportError as error:
        raise StartError(
            f"--tracing {settings.tracing} needs OpenTelemetry ({error}): pip install 'statestream-server[tracing]'"
        ) from error
    return tracing.made(settings.tracing, server)


def _device(settings: Settings) -> runtime.Device:
    try:
        device = runtime.providers_for(settings.device, settings.threads or threads_for(1))
    except runtime.DeviceError as error:
        raise StartError(str(error)) from error
    if device.note:
        log.info("device %s is the CPU: %s", settings.device, device.note)
    check_models(settings)
    return device


@dataclass(slots=True)
class Readiness:
    """Whether callers may be sent here.

    Attributes:
        reason: Why not, or "" where they may.
    """

    reason: str = "starting"
