"""Fixtures and hypothesis' settings for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from statestream_server.models.proof import trials
from tests import leftovers, services

# Shared machines stall: a slow example is no finding, a wrong one is.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(leftovers)
    # A shell has what it starts in the background, and all that comes of that, ignore Ctrl-C, which tests send.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def require_binary() -> Callable[[str], str]:
    """`require_binary("redis-server")`: the program's path, or a skip (a failure in CI)."""
    return services.require_binary


def pytest_sessionfinish() -> None:
    """The processes that tried models go with the run; see tests/leftovers.py."""
    trials.shared().close()
