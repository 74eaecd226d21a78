"""Client of Statestream, the server for models with memory: every live stream gets its own hidden state.

    import statestream

    with statestream.connect("localhost:8001") as client:
        with client.session("sunspots", id="station-7") as session:
            y = session.step(x)

`statestream.aio` is the asyncio twin.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from statestream import aio, errors
    from statestream.backtests import Backtest
    from statestream.base import PoolStep
    from statestream.calls import PoolError
    from statestream.classes import Class
    from statestream.contract.errors import (
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
        PermissionDenied,
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
        Unimplemented,
        Unsupported,
        WindowFull,
    )
    from statestream.credentials import Tls
    from statestream.latest import Latest
    from statestream.owners import local
    from statestream.scores import Scored, Scores
    from statestream.settings import Settings
    from statestream.sync import Client, Pool, Session, connect
    from statestream.texts import Generated, GeneratedToken
    from statestream.views import Limits, Model, ServerInfo, SessionInfo

__version__ = "0.1.0"

__all__ = [
    "AlreadyApplied",
    "AlreadyOpen",
    "AnswerTooLarge",
    "Backtest",
    "BadFrame",
    "BadTensor",
    "Class",
    "Client",
    "Closed",
    "Draining",
    "Generated",
    "GeneratedToken",
    "InternalError",
    "InvalidRequest",
    "Latest",
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
    "PermissionDenied",
    "Pool",
    "PoolError",
    "PoolStep",
    "PositionConflict",
    "PositionError",
    "PositionGap",
    "Quarantined",
    "RecordTooLarge",
    "Scored",
    "Scores",
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
    "Tls",
    "TooManySessions",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unsupported",
    "WindowFull",
    "__version__",
    "aio",
    "connect",
    "errors",
    "local",
]

_ROOMS = {
    "Backtest": "backtests",
    "Class": "classes",
    "Client": "sync",
    "Generated": "texts",
    "GeneratedToken": "texts",
    "Latest": "latest",
    "Limits": "views",
    "Model": "views",
    "Pool": "sync",
    "PoolError": "calls",
    "PoolStep": "base",
    "Scored": "scores",
    "Scores": "scores",
    "ServerInfo": "views",
    "Session": "sync",
    "SessionInfo": "views",
    "Settings": "settings",
    "Tls": "credentials",
    "connect": "sync",
    "local": "owners",
}
"""Where each name is; errors are in `errors`. Imported when it is asked for: the command's help and the contract, which
the server stands on, wait for neither gRPC nor NumPy."""


def __getattr__(name: str) -> object:
    if name in ("aio", "errors"):
        return import_module(f"statestream.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"statestream.{_ROOMS.get(name, 'errors')}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
