"""Client of Statestream, the server for models with memory: every live stream gets its own hidden state.

    import statestream

    with statestream.connect("localhost:8001") as client:
        with client.session("sunspots", id="station-7") as session:
            y = session.step(x)

`statestream.aio` is the asyncio twin.
"""

from statestream import aio, errors
from statestream.base import PoolStep
from statestream.calls import PoolError
from statestream.errors import (
    AlreadyApplied,
    AlreadyOpen,
    AnswerTooLarge,
    BadFrame,
    BadTensor,
    Closed,
    Draining,
    InternalError,
    InvalidRequest,
    ModelChanged,
    ModelInUse,
    ModelNotFound,
    Moved,
    NonFiniteState,
    NotFound,
    NotOwner,
    Overloaded,
    PositionConflict,
    PositionError,
    PositionGap,
    Quarantined,
    RecordTooLarge,
    ServerUnavailable,
    SessionExists,
    SessionMoved,
    SessionNotFound,
    SlowReader,
    SnapshotInvalid,
    StateLost,
    StatestreamError,
    StoreUnavailable,
    TooManySessions,
    Unauthenticated,
    Unavailable,
    Unsupported,
    WindowFull,
)
from statestream.settings import Settings
from statestream.sync import Client, Pool, Session, connect
from statestream.views import Limits, Model, ServerInfo, SessionInfo

__version__ = "0.1.0"

__all__ = [
    "AlreadyApplied",
    "AlreadyOpen",
    "AnswerTooLarge",
    "BadFrame",
    "BadTensor",
    "Client",
    "Closed",
    "Draining",
    "InternalError",
    "InvalidRequest",
    "Limits",
    "Model",
    "ModelChanged",
    "ModelInUse",
    "ModelNotFound",
    "Moved",
    "NonFiniteState",
    "NotFound",
    "NotOwner",
    "Overloaded",
    "Pool",
    "PoolError",
    "PoolStep",
    "PositionConflict",
    "PositionError",
    "PositionGap",
    "Quarantined",
    "RecordTooLarge",
    "ServerInfo",
    "ServerUnavailable",
    "Session",
    "SessionExists",
    "SessionInfo",
    "SessionMoved",
    "SessionNotFound",
    "Settings",
    "SlowReader",
    "SnapshotInvalid",
    "StateLost",
    "StatestreamError",
    "StoreUnavailable",
    "TooManySessions",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "WindowFull",
    "__version__",
    "aio",
    "connect",
    "errors",
]
