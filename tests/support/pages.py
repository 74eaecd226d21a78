"""Pages in Markdown: their fenced blocks, and what runs each of them.

A block says it in the word after its language (```` ```bash run ````, which test_readme.py explains), in a comment on
the line above it, or, for readers to see, in its own first line:

    <!-- run by tests/deploy/test_page.py::test_x -->            that test takes the block from the page and runs it
    <!-- run by tests/deploy/test_page.py::test_x, where Y -->   it does so on machines that have Y
    <!-- from deploy/haproxy.cfg -->                             the block is a part of that file
    # Not run by any test: why                                   nothing of ours runs it
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
FENCE: Final = re.compile(
    r"^(?P<indent> *)(?:<!-- ([^\n]*?) -->\n *)?```(\w+)(?: (\w+))?\n(.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
COMMENT: Final = re.compile(r"(^|\s+)# .*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block: its language and the word after that, its text, that of the output block behind it, its comment."""

    language: str
    role: str
    text: str
    output: str | None = None
    comment: str = ""

    def commands(self) -> list[str]:
        """Its lines without comments; a line that ends in a backslash goes on in the next one."""
        joined = COMMENT.sub("", self.text).replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip()]


def blocks(path: Path) -> list[Block]:
    """The blocks of a page; an output block belongs to the one before it."""
    found: list[Block] = []
    for indent, comment, language, role, indented in FENCE.findall(path.read_text("utf-8")):
        text = "".join(line.removeprefix(indent) for line in indented.splitlines(keepends=True))
        if language == "output":
            assert found, f"{path.name}: an output block without a block before it"
            found[-1] = replace(found[-1], output=text)
        else:
            found.append(Block(language, role, text, comment=comment))
    return found


def chosen(path: Path, language: str, role: str) -> list[Block]:
    """The blocks of a page with this language and role."""
    return [block for block in blocks(path) if (block.language, block.role) == (language, role)]


def run_by(page: str, test: str) -> Block:
    """The block of a page that a test runs: the only one whose comment names it."""
    (found,) = [block for block in blocks(ROOT / page) if runner(block) == test]
    return found


def runner(block: Block) -> str:
    """The test that a block's comment names; "" where it names none."""
    named = re.fullmatch(r"run by ([\w/.]+::\w+)(, where .+)?", block.comment)
    return named[1] if named else ""


def state(block: Block, page: Path) -> str:
    """What becomes of a block, in a word: run, shown (a part of a file), not run; "" where it says nothing.

    Raises:
        AssertionError: It names a test that does not take it from its page, or a file that does not have it.
    """
    if block.role:
        return "run"
    if test := runner(block):
        file, _, function = test.partition("::")
        source = (ROOT / file).read_text("utf-8")
        shared = (ROOT / file).with_name("conftest.py")
        taken = source + (shared.read_text("utf-8") if shared.exists() else "")
        assert re.search(rf"^(async )?def {function}\(", source, re.MULTILINE), f"{page.name}: there is no {test}"
        assert f'"{test}"' in taken, f"{page.name}: {test} does not take its block from the page (pages.run_by)"
        return "run"
    if block.comment.startswith("from "):
        file = block.comment.removeprefix("from ")
        assert block.text in (ROOT / file).read_text("utf-8"), f"{page.name}: this is not in {file}:\n{block.text}"
        return "shown"
    return "not run" if re.match(r"# Not run by any test: \S.*\n", block.text) else ""
