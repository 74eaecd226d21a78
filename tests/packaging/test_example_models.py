"""The example models of deploy/models: small, made as their settings say, and proved by a server as they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_models import DEPLOY, EXAMPLES, MOST_BYTES, Example, fingerprint, train

from statestream import aio
from tests.support.serving import serving


def recorded() -> dict[str, Any]:
    said: dict[str, Any] = json.loads((DEPLOY / "models.json").read_text("utf-8"))
    return said


def test_the_settings_are_those_by_which_the_files_were_made() -> None:
    assert {name: model["settings"] for name, model in recorded().items()} == {
        example.recipe: asdict(example) for example in EXAMPLES
    }


def test_the_files_are_those_that_were_recorded_and_small() -> None:
    files = {
        name: {file.name: fingerprint(file) for file in (DEPLOY / "models" / name / "1").iterdir()}
        for name in (folder.name for folder in (DEPLOY / "models").iterdir())
    }
    assert files == {name: model["files"] for name, model in recorded().items()}
    assert sum(int(file["bytes"]) for model in files.values() for file in model.values()) <= MOST_BYTES


def test_every_example_reached_its_recipes_figure() -> None:
    for example in EXAMPLES:
        assert example.made().card.target.reached(recorded()[example.recipe]["metrics"])


async def test_a_server_proves_and_serves_them_all() -> None:
    async with serving(DEPLOY / "models") as local, aio.connect(local.address) as client:
        models = {model.name: model for model in await client.models()}
        assert models.keys() == {example.recipe for example in EXAMPLES}
        assert {model.batch_invariance for model in models.values()} <= {"exact", "padded"}
        async with client.session("sunspots", id="station-7") as session:
            assert np.isfinite(await session.step([101.0])).all()
        async with client.session("tagger") as session:
            assert np.isfinite(await session.step([1])).all()
        assert await client.generate("antonyms", "king") == "queen"
        assert np.isfinite(await client.predict("sentiment", [[1, 2, 3]])).all()


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.recipe)
def test_the_same_settings_make_the_same_bytes(example: Example, tmp_path: Path) -> None:
    assert train([example], tmp_path / "a") == train([example], tmp_path / "b")
