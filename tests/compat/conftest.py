"""A server in this process, for clients that other people wrote."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import models
from tests.support.serving import Local, serving


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Local]:
    """It serves "counter"."""
    async with serving(models.write(tmp_path / "models", "counter")) as local:
        yield local
