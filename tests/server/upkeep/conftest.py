"""Stores of both kinds, for what is done to them beside their servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner, Result

from statestream_server.stores import open_store
from statestream_server.stores.base import Key, Lasting, Mode, Record
from statestream_server.upkeep.commands import store as command
from tests.server.stores.compliance.asking import claim_of, replace
from tests.server.stores.redis_server import redis_server

Run = Callable[..., Result]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.service)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'sessions.db'}"
        return
    with redis_server(tmp_path) as server:
        yield server.patient


@pytest.fixture
async def kept(url: str) -> AsyncIterator[Lasting]:
    """That store, open."""
    store = cast(Lasting, open_store(url))
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def run(url: str) -> Run:
    """Runs `statestream store …` about that store."""

    def run(name: str, *arguments: object) -> Result:
        return CliRunner().invoke(command, [name, *map(str, arguments), "--store", url])

    return run


async def fill(store: Lasting, *keys: Key, position: int = 1, blob: bytes = b"x") -> list[Record]:
    """Sessions that were claimed and saved."""
    answers = await store.claim([claim_of(key, Mode.CREATE) for key in keys])
    records = [replace(one.record, position=position, blob=blob) for one in answers if one.record is not None]
    assert all(await store.save(records))
    return records
