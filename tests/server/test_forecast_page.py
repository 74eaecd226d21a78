"""docs/forecast.md: its blocks run, in their order, and print what the page says."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from tests.support import pages
from tests.support.serving import process

PAGE = pages.ROOT / "docs/forecast.md"
RUN = "tests/server/test_forecast_page.py::test_the_page_runs"


@pytest.mark.slow
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
            assert printed.getvalue() == (block.output or "")
        assert server.stop() == 0
    assert (tmp_path / "forecast.png").stat().st_size > 10_000
    # 80 % of paths; the months that were held out depend on each other.
    low, high = names["bands"][:, 0, 0], names["bands"][:, 0, 2]
    held = names["sea"][-24:, 0]
    assert ((held >= low) & (held <= high)).mean() > 0.5


def test_every_block_is_run() -> None:
    assert all(pages.state(block, PAGE) in ("run", "shown") for block in pages.blocks(PAGE))
