"""Models for the tests of the server; written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import models


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODELS_DIR with every model of tests/support/models.py; read only."""
    return models.write(tmp_path_factory.mktemp("models"))
