"""The site that `make docs` builds: what becomes of links and blocks; a whole build asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import docs_site
import pytest

from tests.support.pages import ROOT

KNOWN = {"index.md", "limits.md", "how-to/images.md", "checkout/ARCHITECTURE.md", "checkout/examples/images/README.md"}


@pytest.mark.parametrize(
    ("uri", "written", "there"),
    [
        ("how-to/images.md", "[a](../limits.md#memory)", "[a](../limits.md#memory)"),
        ("how-to/images.md", "[a](../../examples/images/README.md)", "[a](../checkout/examples/images/README.md)"),
        ("how-to/images.md", "[a](../../examples/images)", "[a](../checkout/examples/images/README.md)"),
        ("limits.md", "[a](../ARCHITECTURE.md#words)", "[a](checkout/ARCHITECTURE.md#words)"),
        ("limits.md", "[a](../README.md#call-it)", "[a](index.md)"),
        ("limits.md", "[the script](../tools/docs_site.py)", "the script"),
        ("limits.md", "[all](recipes)", "all"),
        ("checkout/ARCHITECTURE.md", "[a](docs/limits.md)", "[a](../limits.md)"),
        ("limits.md", "[a](https://example.org/x)", "[a](https://example.org/x)"),
        # What is nowhere stays a link, which the build refuses.
        ("limits.md", "[a](../nowhere.md)", "[a](checkout/nowhere.md)"),
        ("limits.md", "```bash run\n[a](../README.md)\n```", "```bash\n[a](../README.md)\n```"),
        ("limits.md", "```sh\n# Not run by any test: why\nls\n```", "```sh\nls\n```"),
        ("limits.md", "```output\n1\n```", "```text\n1\n```"),
    ],
)
def test_links_and_blocks(uri: str, written: str, there: str) -> None:
    assert docs_site.rendered(written, uri, KNOWN) == there


def test_the_help_of_every_subcommand_is_there() -> None:
    page = docs_site.command_page()
    for name in ("serve", "sessions ls", "forecast", "completion"):
        assert f"## statestream {name}\n" in page


@pytest.mark.slow
def test_the_site_asks_no_other_host_for_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"?(?:https?:)?//", text)
        loaded += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect|icon)[^>]+href=\"?(?:https?:)?//", text)
        assert not loaded, page
        # A script of the theme fetches what draws these.
        assert 'class="mermaid"' not in text, page
    (api,) = [page for page in pages if page.name == "api.html"]
    assert 'id="statestream.Client.forecast"' in api.read_text("utf-8")
