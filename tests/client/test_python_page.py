"""The code of docs/python.md runs as it stands, against the example models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import ROOT, blocks, runner


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mine = "tests/client/test_python_page.py::test_the_page_runs"
    page = [block.text for block in blocks(ROOT / "docs" / "python.md") if runner(block) == mine]
    assert len(page) == 4
    (tmp_path / "models").symlink_to(ROOT / "deploy" / "models")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    try:
        for text in page:
            exec(text, names)
    finally:
        names["client"].close()
    written = capsys.readouterr()
    assert "300/300 series" in written.err
    lines = written.out.splitlines()
    assert lines[-1] == "(0, 300) (300, 300)"
    assert sorted(line.split()[0] for line in lines[:3]) == ["north", "north", "south"]
    assert sorted(line.split()[:2] for line in lines[3:5])[0] == ["north", "refused"]
    assert lines[5].startswith(("positive", "negative"))
