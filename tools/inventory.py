"""What an environment holds, for whoever passes it on: its third-party licences in one text, and an SBOM.

    python tools/inventory.py NAME --python ENVIRONMENT/bin/python --out FOLDER [--of REQUIREMENT]

writes FOLDER/THIRD_PARTY_LICENSES-NAME.txt and FOLDER/sbom-NAME.cdx.json (CycloneDX), of all that is installed there
or of REQUIREMENT and what that needs. The same environment gives the same bytes: the time in the SBOM is
SOURCE_DATE_EPOCH, or none. Python itself, and what a system's packages bring, are not in either.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parents[1]
SPEC: Final = "1.6"
"""The version of CycloneDX that is written."""
APACHE: Final = ROOT / "LICENSE"
WITHOUT_TEXT: Final = {"flatbuffers": APACHE}
"""What is installed without the text of its licence, and where that stands. Whatever else comes without is an error."""
NAMED: Final = {"protobuf": "BSD-3-Clause"}
"""What names its licence in words of its own alone, and the SPDX expression of that."""
_TEXTS: Final = re.compile(r"(licen[cs]e|copying|notice|third.?party.?notice|authors|patents)", re.IGNORECASE)
_CODE: Final = {".py", ".pyc", ".pyi", ".so", ".h"}
_LINE: Final = "=" * 100


class InventoryError(Exception):
    """An environment that cannot be described: one line with the reason."""


def installed(folders: Iterable[Path]) -> dict[str, Distribution]:
    """The distributions of some folders of packages by their names, of two the one in the earlier folder."""
    found: dict[str, Distribution] = {}
    for distribution in distributions(path=[str(folder) for folder in folders]):
        found.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution)
    return dict(sorted(found.items()))


def needed(found: dict[str, Distribution], requirement: str) -> dict[str, Distribution]:
    """Those of them that a requirement needs, itself too.

    Raises:
        InventoryError: One of them is not installed.
    """
    chosen: dict[str, Distribution] = {}
    waiting, seen = [Requirement(requirement)], set[tuple[str, str]]()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name not in found:
            raise InventoryError(f"{requirement} needs {wanted}, which is not installed")
        chosen[name] = found[name]
        for extra in {"", *wanted.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                parts = [Requirement(line) for line in found[name].requires or ()]
                waiting += [part for part in parts if part.marker is None or part.marker.evaluate({"extra": extra})]
    return dict(sorted(chosen.items()))


def licence(distribution: Distribution) -> str:
    """The licence that a distribution's metadata name, in one line."""
    metadata = distribution.metadata
    classified = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or () if "License ::" in line]
    if known := NAMED.get(canonicalize_name(metadata["Name"])):
        return known
    named = metadata.get_all("License-Expression") or metadata.get_all("License") or [""]
    lines = str(named[0]).strip().splitlines()
    return lines[0] if len(lines) == 1 else ", ".join(classified) or (lines[0] if lines else "not named")


def texts(distribution: Distribution) -> list[tuple[str, str]]:
    """The files with licences and notices that a distribution brings: their names and texts.

    Raises:
        InventoryError: It brings none, and nobody said where the text stands.
    """
    name = canonicalize_name(distribution.metadata["Name"])
    files = [file for file in distribution.files or () if _TEXTS.match(file.name) and file.suffix.lower() not in _CODE]
    found = {str(file): Path(str(file.locate())).read_text("utf-8", errors="replace") for file in files}
    if not found and name in WITHOUT_TEXT:
        found[f"not part of the package; from {WITHOUT_TEXT[name].name}"] = WITHOUT_TEXT[name].read_text("utf-8")
    if not found and all(".dist-info" in file.parts[0] for file in distribution.files or ()):
        found["nothing of its own: it only needs others, which are here with their texts"] = ""
    if not found:
        raise InventoryError(f"{name} brings no text of its licence ({licence(distribution)}); see WITHOUT_TEXT")
    return sorted(found.items())


def licences(chosen: dict[str, Distribution]) -> str:
    """All licences in one text: a list of the packages, then the texts of each."""
    others = {name: one for name, one in chosen.items() if not name.startswith("statestream")}
    rows = [(f"{name} {one.version}", licence(one)) for name, one in others.items()]
    width = max((len(title) for title, _ in rows), default=0)
    parts = ["Third-party packages, their licences and notices.\n"]
    parts += [f"{title:{width}}  {kind}" for title, kind in rows]
    for (title, kind), one in zip(rows, others.values(), strict=True):
        parts += ["", _LINE, f"{title}: {kind}"]
        for file, text in texts(one):
            parts += ["", f"--- {file}", "", text.strip("\n")]
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines()) + "\n"


def sbom(chosen: dict[str, Distribution], target: Path, project: Path | None = None) -> None:
    """Writes the SBOM of some distributions, with what a pyproject.toml describes as its subject.

    cyclonedx-py describes a whole environment: it gets one that holds the metadata of these and nothing else, so that
    no path of this machine is in it.

    Raises:
        InventoryError: cyclonedx-py failed; its message went to stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False, symlinks=True)
        (site,) = Path(folder).glob("lib/python*/site-packages")
        for name, one in chosen.items():
            info = site / f"{name.replace('-', '_')}-{one.version}.dist-info"
            info.mkdir()
            text = one.read_text("METADATA") or ""
            if name in NAMED:
                text = f"License-Expression: {NAMED[name]}\n{text}"
            (info / "METADATA").write_text(text, "utf-8")
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--sv", SPEC]
        command += [
            "--of",
            "JSON",
            "--validate",
            "-o",
            str(target),
            *(["--pyproject", str(project)] if project else []),
        ]
        if subprocess.run([*command, str(Path(folder) / "bin" / "python")], check=False).returncode:
            raise InventoryError("cyclonedx-py failed")


def write(name: str, chosen: dict[str, Distribution], folder: Path, project: Path | None = None) -> list[Path]:
    """Writes both files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text, bill = folder / f"THIRD_PARTY_LICENSES-{name}.txt", folder / f"sbom-{name}.cdx.json"
    text.write_text(licences(chosen), "utf-8")
    sbom(chosen, bill, project)
    return [text, bill]


def site_folders(python: str) -> list[Path]:
    """The folders of packages that an interpreter has of its own."""
    ask = "import sysconfig; print(*{sysconfig.get_path(k) for k in ('purelib', 'platlib')}, sep='\\n')"
    ran = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    return [Path(line) for line in ran.stdout.splitlines()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Describes the environment that the command names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="what the files are named after")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environment")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--of", help="a requirement: only this and what it needs")
    told = parser.parse_args(arguments)
    found = installed(site_folders(told.python))
    try:
        for path in write(told.name, needed(found, told.of) if told.of else found, told.out):
            print(path)
    except InventoryError as error:
        sys.exit(f"inventory: {error}")


if __name__ == "__main__":
    main()
