"""Folders of one version and of two, and a server of both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.versions.counters import LONG
from tests.support import models
from tests.support.serving import Local, serving


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Version 1; the others come as tests need them."""
    return models.write_counter(tmp_path / "models", 1)


@pytest.fixture
def both(folder: Path) -> Path:
    """Versions 1 and 2."""
    return models.write_counter(folder, 2, factor=10)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The address of a store that outlives its server."""
    return f"sqlite:{tmp_path / 'sessions.db'}"


@pytest.fixture
async def local(both: Path, url: str) -> AsyncIterator[Local]:
    """A server that writes only when it is told to."""
    async with serving(both, store=url, checkpoint_interval=LONG) as local:
        yield local
