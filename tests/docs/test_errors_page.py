"""docs/errors.md: it is what the classes say, and its example runs."""

from __future__ import annotations

from pathlib import Path

import errors_page
import pytest

from tests.support import pages
from tests.support.pages import ROOT
from tests.test_readme import check, outputs

TEST = "tests/docs/test_errors_page.py::test_the_block_runs"
PAGE = "docs/errors.md"


def test_the_page_is_fresh() -> None:
    assert (ROOT / PAGE).read_text("utf-8") == errors_page.page(), "run python tools/errors_page.py"


def test_every_reason_is_somewhere_in_troubleshooting() -> None:
    assert sorted(errors_page.troubles()) == sorted(errors_page.leaves())


@pytest.mark.slow
def test_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    block = pages.run_by(PAGE, TEST)
    check(ROOT / PAGE, [block], outputs([block], "", tmp_path))
