"""What `make dist` makes: archives whose bytes depend on the sources alone, licences, SBOMs, digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import dist
import inventory
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from tests.support.pages import ROOT, run_by

KINDS = [("THIRD_PARTY_LICENSES", "txt"), ("sbom", "cdx.json")]
slow = pytest.mark.slow


@slow
def test_all_of_a_release_is_there(released: Path) -> None:
    names = {path.name for path in released.iterdir()}
    archives = {name for name in names if name.endswith((".whl", ".tar.gz"))}
    assert len(archives) == 2 * len(dist.DISTRIBUTIONS)
    described = {f"{kind}-{name}.{end}" for name in dist.DISTRIBUTIONS for kind, end in KINDS}
    assert names == archives | described | {"SHA256SUMS"}


@slow
def test_the_digests_are_of_these_files(released: Path) -> None:
    lines = [line.split("  ") for line in (released / "SHA256SUMS").read_text("utf-8").splitlines()]
    found = {name: hashlib.sha256((released / name).read_bytes()).hexdigest() for _, name in lines}
    assert found == {name: digest for digest, name in lines}
    assert set(found) == {path.name for path in released.iterdir()} - {"SHA256SUMS"}


@slow
def test_every_archive_carries_our_licence(released: Path) -> None:
    ours = (ROOT / "LICENSE").read_bytes()
    for path in released.glob("*.whl"):
        with zipfile.ZipFile(path) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
            assert [wheel.read(name) for name in names] == [ours], path.name
    for path in released.glob("*.tar.gz"):
        with tarfile.open(path) as source:
            file = source.extractfile(f"{path.name.removesuffix('.tar.gz')}/LICENSE")
            assert file is not None
            assert file.read() == ours, path.name


@slow
def test_the_same_sources_give_the_same_bytes(released: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    subprocess.run([sys.executable, str(ROOT / "tools/dist.py"), "--out", str(again)], check=True, capture_output=True)
    assert digests(again) == digests(released)


@slow
def test_the_wheels_of_an_image_are_these(released: Path, tmp_path: Path) -> None:
    """Built where there is no repository, by another user, from files of another time and other rights."""
    tree, made = tmp_path / "src", tmp_path / "wheels"
    for name in ("client", "server", "export", "tools"):
        shutil.copytree(ROOT / name, tree / name, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("dist"))
    shutil.copyfile(ROOT / "LICENSE", tree / "LICENSE")
    command = [sys.executable, str(tree / "tools/dist.py"), "--wheels-only", "--out", str(made)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, capture_output=True, umask=0o077, cwd=tmp_path, env=environment)
    assert digests(made) == {name: digest for name, digest in digests(released).items() if name.endswith(".whl")}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@slow
def test_old_files_go_and_others_stay(tmp_path: Path) -> None:
    for name in ("statestream-0.0.1-py3-none-any.whl", "SHA256SUMS", "notes.txt"):
        (tmp_path / name).write_text("old")
    dist.main(["--wheels-only", "--out", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    assert "notes.txt" in names
    assert not names & {"statestream-0.0.1-py3-none-any.whl", "SHA256SUMS"}
    assert len(names) == 4


@slow
@pytest.mark.parametrize("name", dist.DISTRIBUTIONS)
def test_the_sbom_is_cyclonedx(released: Path, name: str) -> None:
    text = (released / f"sbom-{name}.cdx.json").read_text("utf-8")
    assert JsonStrictValidator(SchemaVersion.from_version(inventory.SPEC)).validate_str(text) is None
    bill = json.loads(text)
    project = dist.DISTRIBUTIONS[name].partition("[")[0]
    assert bill["metadata"]["component"]["name"] == project
    assert all(part.get("licenses") and part["purl"] and part["version"] for part in bill["components"])
    assert not [path for path in ("file:", str(ROOT), sys.prefix) if path in text], "a path of this machine"


@slow
@pytest.mark.parametrize("name", dist.DISTRIBUTIONS)
def test_every_package_of_the_sbom_has_its_licence(released: Path, name: str) -> None:
    bill = json.loads((released / f"sbom-{name}.cdx.json").read_text("utf-8"))
    text = (released / f"THIRD_PARTY_LICENSES-{name}.txt").read_text("utf-8")
    sections = text.split(f"\n{'=' * 100}\n")[1:]
    titles = {section.partition(":")[0] for section in sections}
    others = {f"{canonicalize_name(part['name'])} {part['version']}" for part in bill["components"]}
    assert titles == {title for title in others if not title.startswith("statestream")}
    assert min(len(section) for section in sections) > 500, "a licence has some sentences"
    assert "not named" not in text


@slow
def test_an_environment_is_described(tmp_path: Path) -> None:
    """As docs/deploy.md tells."""
    (line,) = run_by("docs/deploy.md", "tests/packaging/test_dist.py::test_an_environment_is_described").commands()
    line = line.replace(".venv/bin/python", sys.executable).replace("--out described", f"--out {tmp_path}")
    subprocess.run(["bash", "-euc", line], check=True, capture_output=True, cwd=ROOT)
    assert {path.name for path in tmp_path.iterdir()} == {f"{kind}-server.{end}" for kind, end in KINDS}


def package(folder: Path, name: str, *lines: str, licence: str | None = None, module: bool = True) -> Distribution:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines, ""]))
    record = [f"{info.name}/METADATA,,"]
    if module:
        (folder / f"{name}.py").touch()
        record.append(f"{name}.py,,")
    if licence is not None:
        (info / "LICENSE").write_text(licence)
        record.append(f"{info.name}/LICENSE,,")
    (info / "RECORD").write_text("\n".join(record))
    return Distribution.at(info)


def test_a_package_without_a_licence_text_is_an_error(tmp_path: Path) -> None:
    one = package(tmp_path, "bare", "License: MIT")
    with pytest.raises(inventory.InventoryError, match="bare brings no text of its licence \\(MIT\\)"):
        inventory.licences({"bare": one})


def test_a_package_that_only_needs_others_has_no_text_to_bring(tmp_path: Path) -> None:
    assert "only needs others" in inventory.licences({"meta": package(tmp_path, "meta", module=False)})


def test_what_a_requirement_needs_by_its_extras(tmp_path: Path) -> None:
    package(tmp_path, "Top", "Provides-Extra: more", "Requires-Dist: base", "Requires-Dist: other; extra == 'more'")
    package(tmp_path, "base", "Requires-Dist: never; python_version < '3'")
    package(tmp_path, "other", "Requires-Dist: top[more]")
    package(tmp_path, "beside")
    found = inventory.installed([tmp_path])
    assert set(inventory.needed(found, "top")) == {"top", "base"}
    assert set(inventory.needed(found, "top[more]")) == {"top", "base", "other"}
    package(tmp_path, "broken", "Requires-Dist: missing>=2")
    with pytest.raises(inventory.InventoryError, match="broken needs missing>=2, which is not installed"):
        inventory.needed(inventory.installed([tmp_path]), "broken")


def test_the_first_folder_goes_before_the_second(tmp_path: Path) -> None:
    for folder, licence in (("a", "first"), ("b", "second")):
        (tmp_path / folder).mkdir()
        package(tmp_path / folder, "twice", "License-Expression: MIT", licence=licence)
    found = inventory.installed([tmp_path / "a", tmp_path / "b"])
    assert inventory.texts(found["twice"]) == [("twice-1.0.dist-info/LICENSE", "first")]
