"""Fixtures for the tests of whoever uses Statestream; pytest has to be there.

# conftest.py
pytest_plugins = ["statestream_server.testing"]

# test_mine.py
def test_it_remembers(statestream_local):
    client = statestream_local("net.onnx")
    with client.session("net") as session:
        session.step([1, 2])
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

try:
    import pytest
except ImportError as missing:
    raise ImportError("the fixtures need pytest: pip install 'statestream-server[testing]'", name="pytest") from missing

import statestream

__all__ = ["statestream_local"]


@pytest.fixture(scope="session")
def statestream_local() -> Iterator[Callable[..., statestream.Client]]:
    """`statestream.local` for tests: the same arguments give the same client, so a run starts each server once.

    Sessions without an id are each test's own; give named ones names that no other test has. `client.server.address`
    is for asyncio clients. All servers leave at the end of the run.
    """
    clients: dict[str, statestream.Client] = {}
    with contextlib.ExitStack() as leaving:

        def local(models: Any, **options: Any) -> statestream.Client:
            key = repr((models, sorted(options.items())))
            known = clients.get(key)
            if known is None or known.server is None or not known.server.running:
                known = clients[key] = leaving.enter_context(statestream.local(models, **options))
            return known

        yield local
