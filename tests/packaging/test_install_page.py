"""docs/install.md names every extra there is, and what it says that a missing one says is what is said."""

from __future__ import annotations

import re

import pytest

from tests.packaging.test_versions import DISTRIBUTIONS, project
from tests.support.pages import ROOT

PAGE = (ROOT / "docs" / "install.md").read_text("utf-8")
ROWS: list[tuple[str, str]] = re.findall(r"^\| [^|]+ \| `([\w\[\]-]+)` \| (?:`(.+)` )?\|$", PAGE, re.MULTILINE)
"""What is installed, and what is said without it."""


def test_every_extra_stands_there() -> None:
    named = {requirement for requirement, _ in ROWS}
    extras = {
        f"{name}[{extra}]"
        for folder, name in DISTRIBUTIONS.items()
        for extra in project(folder).get("optional-dependencies", {})
    }
    assert named == extras | {"statestream", "statestream-export"}


@pytest.mark.parametrize(
    ("requirement", "said"), [row for row in ROWS if row[1] and not row[1].startswith("No module named")]
)
def test_what_a_missing_one_says_names_the_command(requirement: str, said: str) -> None:
    """One message has both, so that whoever looks for the one finds the other."""
    words = re.escape(said).replace(re.escape("click and rich"), ".{1,60}")
    for folder in DISTRIBUTIONS:
        for path in (ROOT / folder / "src").rglob("*.py"):
            text = re.sub(r'"\s*\n\s*f?"', "", path.read_text("utf-8"))
            for found in re.finditer(words, text):
                after = text[found.start() : found.start() + 300]
                if requirement in after or "ELSEWHERE[name].package" in after:
                    return
    pytest.fail(f"nothing in the sources says {said!r} and {requirement!r}")


def test_the_bounds_of_torch_are_the_exporters() -> None:
    (bounds,) = (name for name in project("export")["dependencies"] if name.startswith("torch"))
    assert f'"{bounds}"' in PAGE
