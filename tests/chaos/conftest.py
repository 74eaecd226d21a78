"""Seed, size and models of the chaos runs."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.oracle import Oracle, write_model


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """STATESTREAM_CHAOS_SEED, or the date: it rotates from day to day, and the same day can be run again."""
    given = os.environ.get("STATESTREAM_CHAOS_SEED")
    number = int(given) if given else datetime.datetime.now(datetime.UTC).date().toordinal()
    print(f"\n{request.node.name}: STATESTREAM_CHAOS_SEED={number}")
    return number


@pytest.fixture(scope="session")
def scaled() -> Callable[[int, int], int]:
    """`scaled(full, least)`: a size times STATESTREAM_CHAOS_SCALE (1 where it is not set), and never below `least`."""
    factor = float(os.environ.get("STATESTREAM_CHAOS_SCALE", "1"))
    return lambda full, least: max(least, round(full * factor))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models"))


@pytest.fixture
def oracle(models: Path, seed: int) -> Oracle:
    return Oracle(models, seed)
