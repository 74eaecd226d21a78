"""Which server the protocol's rules are checked against: `--target HOST:PORT --model NAME`, or one of our own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support import models, serving
from tests.support.calls import Caller, connected
from tests.support.speaker import Speaker
from tests.support.subject import Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", default=None, help="host:port of a running server; else STATESTREAM_TARGET")
    parser.addoption("--model", default=None, help="a session model that it serves; else STATESTREAM_TARGET_MODEL")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is asked of a server is asked of one with each edge; a target that runs has its own."""
    if "edge" in metafunc.fixturenames:
        metafunc.parametrize("edge", [""] if _told(metafunc.config) else serving.EDGES, scope="session")


def _told(config: pytest.Config) -> str | None:
    told: str | None = config.getoption("--target", default=None) or os.environ.get("STATESTREAM_TARGET")
    return told


@dataclass(frozen=True)
class Target:
    """A server, and the session model that is stepped there."""

    address: str
    model: str


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, edge: str) -> Iterator[Target]:
    address = _told(request.config)
    model = request.config.getoption("--model", default=None) or os.environ.get("STATESTREAM_TARGET_MODEL")
    if address:
        if not model:
            pytest.fail("a target needs the name of one of its session models: --model NAME", pytrace=False)
        yield Target(address, model)
        return
    folder = tmp_path_factory.mktemp("compliance")
    store = f"sqlite:{folder / 'sessions.db'}"
    options = ("--store", store, "--durability", "interval", "--checkpoint-interval", "0.2", "--log-level", "warning")
    with serving.process(models.write_loops(models.write(folder / "models")), *options, edge=edge) as server:
        yield Target(server.address, "loop")


@pytest.fixture
async def channel(target: Target) -> AsyncIterator[Any]:
    async with connected(target.address) as channel:
        yield channel


@pytest.fixture
async def caller(channel: Any) -> Caller:
    return Caller(channel)


@pytest.fixture
async def subject(channel: Any, target: Target) -> Subject:
    return await Subject.find(channel, target.model)


@pytest.fixture
async def speaker(channel: Any, target: Target) -> AsyncIterator[Speaker]:
    async with Speaker(channel, target.model) as speaker:
        yield speaker


@pytest.fixture
async def other(channel: Any, target: Target) -> AsyncIterator[Speaker]:
    """Another stream with another writer, as a second program would have."""
    async with Speaker(channel, target.model) as speaker:
        yield speaker
