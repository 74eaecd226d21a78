"""The synchronous twin of `statestream.aio`: blocking calls over the shared core, with threads of its own."""

from statestream.sync.client import Client
from statestream.sync.connecting import connect
from statestream.sync.pool import Pool
from statestream.sync.session import Session

__all__ = ["Client", "Pool", "Session", "connect"]
