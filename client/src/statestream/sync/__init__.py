"""The synchronous twin of `statestream.aio`: blocking calls over the shared core, with threads of its own."""

from statestream.sync.client import Client, connect
from statestream.sync.pool import Pool
from statestream.sync.session import Session

__all__ = ["Client", "Pool", "Session", "connect"]
