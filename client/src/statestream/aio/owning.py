"""What makes an asyncio client that has a server of its own."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np

from statestream.aio.client import Client
from statestream.aio.connecting import connect
from statestream.aio.opening import Opening, opening
from statestream.aio.waiting import apart
from statestream.owned import START_SECONDS, Models, Owned
from statestream.settings import Settings
from statestream.unary import server_info_request


def local(  # asyncio only
    models: Models,
    *,
    store: str = "memory",
    durability: str | None = None,
    device: str | None = None,
    timeout: float = START_SECONDS,
    settings: Settings | None = None,
    **options: Any,
) -> Opening[Client]:
    """A client of a server of its own, by `await` or `async with`; see `statestream.local`, whose arguments it has."""
    given = {"store": store, "durability": durability, "device": device, **options}
    return _local(models, given, timeout, settings)


@opening("client")  # asyncio only
async def _local(  # asyncio only
    models: Models, options: dict[str, Any], seconds: float, settings: Settings | None
) -> Client:
    return await owning(Owned(models, options, seconds), settings)


async def owning(server: Owned, settings: Settings | None) -> Client:
    """A client of a server that starts; closing it, or losing it, ends the server.

    Raises:
        ServerUnavailable: The server did not start; with what it said.
    """
    try:
        await _prepare(server.address)
        await apart(server.wait)
        client = await connect(server.address, settings=settings or Settings(retry_timeout=10.0))
    except BaseException:
        server.kill()
        raise
    client.server = server
    return client


async def _prepare(address: str) -> None:
    """Has done what a first call would wait for, while the server starts: imports, and gRPC's own start."""
    server_info_request()
    np.unique(np.zeros(1, np.uint8))
    await grpc.aio.insecure_channel(address).close()
