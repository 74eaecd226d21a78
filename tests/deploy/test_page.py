"""docs/deploy.md: every block of code on it is run by a test, or says that it is not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from statestream.command import group
from tests.deploy.manifests import KUBERNETES, build
from tests.deploy.running import check_server, server_of
from tests.server.stores.redis_server import redis_server
from tests.support import models, pages
from tests.support.pages import ROOT, run_by
from tests.support.serving import process

PAGE = ROOT / "docs" / "deploy.md"
PATHS = re.compile(r"(?<![\w/.-])(?:deploy|docs|tools|client|server|export)/[\w./-]+")


def test_every_block_is_run_or_says_that_it_is_not() -> None:
    found = pages.blocks(PAGE)
    fences = re.findall(r"^ *```", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(found) > 16, "a fence without a language"
    assert not [block.text for block in found if not pages.state(block, PAGE)]


def test_what_a_block_says_is_checked(tmp_path: Path) -> None:
    def said(comment: str, text: str = "true\n") -> str:
        return pages.state(pages.Block("bash", "", text, comment=comment), PAGE)

    assert said("") == ""
    assert said("", "# Not run by any test: nobody can.\ntrue\n") == "not run"
    assert said("", "# Not run by any test:\ntrue\n") == ""
    assert said("from Makefile", "check: $(STAMP)\n") == "shown"
    with pytest.raises(AssertionError, match="this is not in Makefile"):
        said("from Makefile", "nowhere: $(STAMP)\n")
    with pytest.raises(AssertionError, match="there is no tests/deploy/test_page.py::test_nothing"):
        said("run by tests/deploy/test_page.py::test_nothing")
    with pytest.raises(AssertionError, match="does not take its block from the page"):
        said("run by tests/test_readme.py::test_links_lead_somewhere")
    page = tmp_path / "page.md"
    page.write_text("1. A list:\n\n   <!-- from a -->\n   ```bash\n   one \\\n     two  # three\n   ```\n")
    (block,) = pages.blocks(page)
    assert (block.comment, block.commands()) == ("from a", ["one    two"])


def test_every_path_and_link_leads_somewhere() -> None:
    text = PAGE.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (PAGE.parent / target).exists(), target
    for block in pages.blocks(PAGE):
        for path in PATHS.findall(block.text):
            assert (ROOT / path).exists(), path


def test_kustomizations_are_all_named() -> None:
    table = PAGE.read_text("utf-8").split("| kustomization |")[1].split("\n\n")[0]
    named = set(re.findall(r"^\| `([\w/-]+)`", table, re.MULTILINE)) | {"overlays/cluster-istio"}
    assert named == {str(path.parent.relative_to(KUBERNETES)) for path in KUBERNETES.rglob("kustomization.yaml")}


def test_what_kubectl_builds() -> None:
    lines = run_by("docs/deploy.md", "tests/deploy/test_page.py::test_what_kubectl_builds").commands()
    for line in lines:
        assert line.startswith("kubectl kustomize ")
        assert build(ROOT / line.removeprefix("kubectl kustomize "))
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on PATH: what it builds was built by hand")
    for line in lines:
        ran = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, cwd=ROOT)
        assert ran.returncode == 0, ran.stderr
        assert len(list(yaml.safe_load_all(ran.stdout))) > 10


def test_the_secret_lets_the_server_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis with the users of the page, and a server with its password and the overlay's environment."""
    block = run_by("docs/deploy.md", "tests/deploy/test_page.py::test_the_secret_lets_the_server_in")
    subprocess.run(["bash", "-euc", block.text], check=True, cwd=tmp_path)
    assert {path.name: path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {"password": 0, "users.acl": 0}
    users, container = str(tmp_path / "users.acl"), server_of("overlays/cluster")
    (told,) = [entry["value"] for entry in container["env"] if entry["name"] == "STATESTREAM_STORE"]
    with redis_server(tmp_path, "--aclfile", users, "--appendonly", "yes", "--appendfsync", "always") as store:
        url = told.replace("statestream-redis:6379", f"127.0.0.1:{store.port}")
        url = url.replace("/run/secrets/statestream/password", str(tmp_path / "password"))
        check_server(tmp_path, container, url, monkeypatch)
        assert "127.0.0.1" in url
        assert str(tmp_path) in url


def test_a_replica_is_emptied(tmp_path: Path) -> None:
    (line,) = run_by("docs/deploy.md", "tests/deploy/test_page.py::test_a_replica_is_emptied").commands()
    models.write(tmp_path / "models", "counter")
    with process(tmp_path / "models", "--store", f"sqlite:{tmp_path / 'sessions.db'}") as server:
        name, *arguments = line.replace("localhost:8001", server.address).split()
        assert name == "statestream"
        ran = CliRunner().invoke(group.main, arguments)
        assert ran.exit_code == 0, ran.output
