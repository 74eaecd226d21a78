# Generated from statestream/aio/owning.py by `make twins`; change that one.
"""What makes a synchronous client that has a server of its own."""

from __future__ import annotations

from statestream.owned import Owned
from statestream.settings import Settings
from statestream.sync.client import Client, connect
from statestream.sync.waiting import apart


def owning(server: Owned, settings: Settings | None) -> Client:
    """A client of a server that starts; closing it, or losing it, ends the server.

    Raises:
        ServerUnavailable: The server did not start; with what it said.
    """
    try:
        apart(server.wait)
        client = connect(server.address, settings=settings or Settings(retry_timeout=10.0))
    except BaseException:
        server.kill()
        raise
    client.server = server
    return client
