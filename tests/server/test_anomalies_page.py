"""docs/anomalies.md: its blocks run, in their order, and print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import pages
from tests.support.serving import process

PAGE = pages.ROOT / "docs/anomalies.md"
RUN = "tests/server/test_anomalies_page.py::test_the_page_runs"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, *others = [block for block in pages.blocks(PAGE) if pages.runner(block) == RUN]
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(first.text, str(PAGE), "exec"), names)
    with process(tmp_path / "models", "--store", "memory", "--log-level", "warning") as server:
        for block in others:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text.replace("localhost:8001", server.address), str(PAGE), "exec"), names)
            # What a trained model finds is as the page says to rounding of its training.
            assert _words(printed.getvalue()) == _words(block.output or "")
        assert server.stop() == 0
    assert (tmp_path / "anomalies.png").stat().st_size > 10_000
    assert names["precision"] > 0.7
    assert names["recall"] > 0.7


def _words(text: str) -> str:
    return re.sub(r"\b\d\.\d\d\b|\b\d+ alarms", "…", text)


def test_every_block_is_run() -> None:
    assert all(pages.state(block, PAGE) == "run" for block in pages.blocks(PAGE))
