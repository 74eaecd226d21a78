"""Programs that are not Python: where tests find them, and what their absence means."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def require_binary(name: str) -> str:
    """Finds a program on PATH, or skips the test.

    Where STATESTREAM_REQUIRE_SERVICES=1 (CI sets it), a missing program fails the test: there, a skip
    would mean that nobody runs it.
    """
    path = shutil.which(name)
    if path is None:
        absent(f"{name} is not on PATH")
    return path


def absent(why: str) -> NoReturn:
    """Skips the test, or fails it where STATESTREAM_REQUIRE_SERVICES=1."""
    if os.environ.get("STATESTREAM_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{why}, and STATESTREAM_REQUIRE_SERVICES=1 says that it must be there", pytrace=False)
    pytest.skip(why)
