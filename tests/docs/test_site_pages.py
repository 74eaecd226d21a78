"""The pages of the site that have no test of their own: their Python runs and prints what they show."""

from __future__ import annotations

import code
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.pages import ROOT
from tests.test_readme import check, outputs

TEST = "tests/docs/test_site_pages.py::test_the_page_runs"
ROOMS = ("tutorials", "how-to", "explanation")
PAGES = [
    "docs/index.md",
    *sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / "docs" / room).glob("*.md")),
]
QUICK = {"docs/index.md"}
"""That one `make test` has time for."""


@pytest.mark.parametrize(
    "page", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in PAGES]
)
def test_the_page_runs(page: str, tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    parts = [block for block in pages.blocks(ROOT / page) if pages.runner(block) == TEST]
    printed = outputs(parts, "", tmp_path)
    check(ROOT / page, parts, printed)
    # The models of these pages are files of the checkout: each number is the one that a reader sees.
    assert printed == [block.output or "" for block in parts]


class _Prompt(code.InteractiveConsole):
    """Python's prompt, which compiles what is typed and runs nothing."""

    def runcode(self, code: object) -> None:
        pass

    def write(self, data: str) -> None:
        raise AssertionError(data)


@pytest.mark.parametrize("page", [page for page in PAGES if "tutorials/first" in page])
def test_what_the_page_has_pasted_into_python_is_taken(page: str) -> None:
    prompt = _Prompt()
    for block in pages.blocks(ROOT / page):
        for line in block.text.splitlines() if block.language == "python" else ():
            more = prompt.push(line)
        assert block.language != "python" or not more, block.text


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_that_it_is_not(page: str) -> None:
    for block in pages.blocks(ROOT / page):
        assert block.language == "text" or pages.state(block, ROOT / page), block.text
