from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from statestream_server.stores.base import Store
from statestream_server.stores.redis import RedisStore
from tests.server.stores.compliance import StoreCompliance
from tests.server.stores.redis_server import Server, redis_server

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def store(server: Server) -> AsyncIterator[Store]:
    server.client.flushall()
    store = RedisStore(server.url)
    await store.start()
    yield store
    await store.close()


class TestRedisStore(StoreCompliance):
    pass
