"""The notebooks in examples/ run from their first cell to their last; they are kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import ROOT

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def executed(name: str, tmp_path: Path) -> Any:
    import nbformat
    from nbclient import NotebookClient

    place = tmp_path / "examples" / "notebooks"
    place.mkdir(parents=True)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    notebook = nbformat.reads((FOLDER / name).read_text("utf-8"), 4)
    NotebookClient(notebook, timeout=90, resources={"metadata": {"path": str(place)}}).execute()
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_first_session(tmp_path: Path) -> None:
    model, steps, copies, refused, restored = executed("first_session.ipynb", tmp_path)
    assert "<Model sunspots version 1 (session)" in model[0]["data"]["text/plain"]
    assert steps[0]["text"].endswith("position 4\n")
    assert copies[0]["text"] == "5 4\n"
    assert "BAD_TENSOR: x has shape [2]" in refused[0]["text"]
    assert restored[0]["text"] == "True 4\n"


@pytest.mark.slow
def test_the_fan(tmp_path: Path) -> None:
    lengths, shape, chart, inside = executed("forecast_fan.ipynb", tmp_path)
    assert lengths[0]["text"].startswith("[225, 235")
    assert shape[0]["data"]["text/plain"] == "(8, 12, 1, 5)"
    assert "image/png" in chart[0]["data"]
    assert 0.5 < float(inside[0]["text"].split()[0]) <= 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_kept_without_outputs(name: str) -> None:
    notebook = json.loads((FOLDER / name).read_text("utf-8"))
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
