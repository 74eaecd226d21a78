"""docs/generate.md: its blocks run, in their order, and print what the page says."""

from __future__ import annotations

import contextlib
import io
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import pages
from tests.support.serving import process

PAGE = pages.ROOT / "docs/generate.md"
RUN = "tests/server/test_generate_page.py::test_the_page_runs"


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, *others = [block for block in pages.blocks(PAGE) if pages.runner(block) == RUN]
    (line,) = first.commands()
    command, *words = shlex.split(line)
    assert command == "statestream"
    subprocess.run([sys.executable, "-m", "statestream.cli", *words], check=True, capture_output=True)
    names: dict[str, Any] = {"__name__": "page"}
    with process(tmp_path / "models", "--store", "memory", "--log-level", "warning") as server:
        for block in others:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text.replace("localhost:8001", server.address), str(PAGE), "exec"), names)
            assert printed.getvalue() == (block.output or "")
        assert server.stop() == 0
    assert (tmp_path / "generate.png").stat().st_size > 4_000


def test_every_block_is_run() -> None:
    assert all(pages.state(block, PAGE) == "run" for block in pages.blocks(PAGE))
