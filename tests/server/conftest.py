"""Models for the tests of the server, written once, and a server of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import forecasters, models, observers
from tests.support.serving import Local, serving
from tests.support.speaker import Speaker


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODELS_DIR with every model of tests/support/models.py; read only."""
    return models.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def forecasters_written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """MODELS_DIR with every model of tests/support/forecasters.py, and their modules; read only."""
    folder = tmp_path_factory.mktemp("forecasters")
    return folder, forecasters.write(folder)


@pytest.fixture(scope="session")
def observers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODELS_DIR with every model of tests/support/observers.py; read only."""
    return observers.write(tmp_path_factory.mktemp("observers"))


@pytest.fixture
async def local(models_dir: Path) -> AsyncIterator[Local]:
    """A server in this process, of all the models, with a store in memory."""
    async with serving(models_dir) as local:
        yield local


@pytest.fixture
async def counter(local: Local) -> AsyncIterator[Speaker]:
    """A stream to it, for sessions of "counter"."""
    async with Speaker(local.channel, "counter") as speaker:
        yield speaker
