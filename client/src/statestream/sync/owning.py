# Generated from statestream/aio/owning.py by `make twins`; change that one.
"""What makes a synchronous client that has a server of its own."""

from __future__ import annotations

import grpc
import numpy as np

from statestream.owned import Owned
from statestream.settings import Settings
from statestream.sync.client import Client
from statestream.sync.connecting import connect
from statestream.sync.waiting import apart
from statestream.unary import server_info_request


def owning(server: Owned, settings: Settings | None) -> Client:
    """A client of a server that starts; closing it, or losing it, ends the server.

    Raises:
        ServerUnavailable: The server did not start; with what it said.
    """
    try:
        _prepare(server.address)
        apart(server.wait)
        client = connect(server.address, settings=settings or Settings(retry_timeout=10.0))
    except BaseException:
        server.kill()
        raise
    client.server = server
    return client


def _prepare(address: str) -> None:
    """Has done what a first call would wait for, while the server starts: imports, and gRPC's own start."""
    server_info_request()
    np.unique(np.zeros(1, np.uint8))
    grpc.insecure_channel(address).close()
