"""Fixtures for the tests of the client: a core on a wire, a server over gRPC, both clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.client.fake_server import Fake
from tests.client.twins import Aio, Connect, Sync, Twin
from tests.client.wire import Wire


@pytest.fixture
def wire() -> Wire:
    """A core and a world that are connected."""
    wire = Wire()
    wire.connect()
    return wire


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A real gRPC server over a world."""
    fake = Fake()
    yield fake
    fake.stop()


@pytest.fixture(params=[Sync(), Aio()], ids=lambda twin: twin.name)
def twin(request: pytest.FixtureRequest) -> Twin:
    """Each of the two clients."""
    return request.param


@pytest.fixture
async def connect(twin: Twin, fake: Fake) -> AsyncIterator[Connect]:
    """Clients of the server (or of another address), closed at the end."""
    clients = []

    async def connect(address: str | None = None, **kwargs: Any) -> Any:
        client = await twin.connect(address or fake.address, **kwargs)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        await twin.call(client.close)
