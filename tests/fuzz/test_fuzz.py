"""The fuzzer itself, for moments: what is read of files, and every target over sockets once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz import files, wires
from tests.support.serving import EDGES

FEW = settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("target", files.TARGETS.values(), ids=files.TARGETS)
def test_what_is_read_of_files_is_taken_or_refused(target: Callable[[], Any]) -> None:
    FEW(target)()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("edge", EDGES)
def test_whatever_comes_over_sockets_is_answered_and_nothing_stays(edge: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        (server,) = wires.servers(tmp_path, [edge], stack)
        with server.connected():
            for target in wires.targets(server).values():
                server.restored()
                FEW(target)()
            stored = server.emptied()
        assert (server.held(stored).rows, stored) == (0, 0)
        assert server.process.stop() == 0
