"""The server's rooms, wired together: what the edges call. Starting and stopping is app.py's."""

from __future__ import annotations

from dataclasses import dataclass

from statestream_server.drivers.forecast import Forecaster
from statestream_server.drivers.generate import Generator
from statestream_server.drivers.predict import Predictor
from statestream_server.engine.engine import Engine
from statestream_server.lag import Lag, TurnLoad
from statestream_server.quarantine.quarantine import Quarantine
from statestream_server.registry import Registry
from statestream_server.sessions.admin.copies import Copies
from statestream_server.sessions.admission.accounts import Accounts, Budgets
from statestream_server.sessions.admission.intake import Coalescer, Intake
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.ownership.activation import Activation
from statestream_server.sessions.ownership.deletions import Deletions
from statestream_server.sessions.ownership.departures import Departures
from statestream_server.sessions.ownership.moves import Moves
from statestream_server.sessions.ownership.peers import Peers
from statestream_server.sessions.ownership.sessions import Sessions
from statestream_server.sessions.ownership.tasks import Tasks
from statestream_server.sessions.unary import Unary
from statestream_server.settings import Settings
from statestream_server.stores.base import Store


@dataclass(frozen=True, slots=True)
class Server:
    """One server process.

    Attributes:
        id: A random name for this process; records name their owner by it.
        fingerprint: Runtime, provider and hardware, for people.
        device: Where models run: "cpu", "cuda:0".
    """

    id: str
    fingerprint: str
    device: str
    settings: Settings
    store: Store
    engine: Engine
    lease: Lease
    checkpointer: Checkpointer
    peers: Peers
    registry: Registry
    sessions: Sessions
    deletions: Deletions
    departures: Departures
    moves: Moves
    tasks: Tasks
    activation: Activation
    unary: Unary
    copies: Copies
    intake: Intake
    coalescer: Coalescer
    accounts: Accounts
    budgets: Budgets
    quarantine: Quarantine
    lag: Lag
    turns: TurnLoad
    predictor: Predictor
    forecaster: Forecaster
    generator: Generator


@dataclass(slots=True)
class Readiness:
    """Whether callers may be sent here.

    Attributes:
        reason: Why not, or "" where they may.
    """

    reason: str = "starting"
