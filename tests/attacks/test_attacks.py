"""Every attack beside a victim: counted, never timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import frames  # noqa: F401  # Its attacks are in the list, too.
from tests.attacks.arena import arena
from tests.attacks.attacks import ATTACKS, Attack
from tests.support import models, serving

pytestmark = pytest.mark.attack


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("models"), "counter", "loop", "lstm", "scores", "pair", "tokens")


@pytest.mark.parametrize("edge", serving.EDGES)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_attack(models_dir: Path, attack: Attack, edge: str) -> None:
    async with arena(models_dir, *attack.options, edge=edge) as found:
        await attack.run(found)
        await found.check()
