"""A server with the edge of our own, which all tests of one run share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import models, serving
from tests.support.serving import Process


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    if "h2" not in serving.EDGES:
        pytest.skip("STATESTREAM_EDGE names another edge")
    folder = models.write(tmp_path_factory.mktemp("edges"), "counter", "scores")
    options = ("--store", "memory", "--log-level", "warning", "--http", "--http-port", "0")
    with serving.process(folder, *options, edge="h2") as server:
        yield server
