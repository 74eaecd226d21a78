"""Makes what a release is: the wheels and source archives of the three distributions, and what is said with them.

    python tools/dist.py [--out dist]              all of it; `make dist`
    python tools/dist.py --wheels-only --out DIR   wheels alone, as images are made: build and hatchling are enough

Beside the archives lie, for each distribution, THIRD_PARTY_LICENSES-NAME.txt and sbom-NAME.cdx.json: what an
installation of it brings, in the versions of constraints.txt, as this environment has them (tools/inventory.py).
SHA256SUMS is over all of it. The same sources give the same bytes anywhere: archives carry the time SOURCE_DATE_EPOCH,
and a fixed one where that is not set.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
DISTRIBUTIONS: Final = {
    "client": "statestream[cli,pandas]",
    "server": "statestream-server[cpu,redis]",
    "export": "statestream-export",
}
"""Folders, and what of each is described. onnxruntime-gpu and its CUDA libraries are in the image that has them."""
EPOCH: Final = "1580601600"
"""Hatchling's own time where it is told none: 2020-02-02."""
OURS: Final = ("statestream*.whl", "statestream*.tar.gz", "THIRD_PARTY_LICENSES-*.txt", "sbom-*.cdx.json", "SHA256SUMS")


def build(folder: Path, *, wheels_only: bool) -> None:
    """Builds the archives of all three distributions into a folder; a wheel is built from its source archive.

    Raises:
        subprocess.CalledProcessError: One cannot be built; the message was printed.
    """
    environment = {"SOURCE_DATE_EPOCH": EPOCH, **os.environ}
    for name in DISTRIBUTIONS:
        kinds = ["--wheel"] if wheels_only else []
        command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(folder), str(ROOT / name)]
        ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ran.returncode:
            print(ran.stdout, file=sys.stderr)
        ran.check_returncode()


def describe(folder: Path) -> None:
    """Writes licences and SBOMs of the wheels in a folder.

    Raises:
        inventory.InventoryError: Something that they need is not installed here, or brings no licence.
    """
    import inventory

    os.environ.setdefault("SOURCE_DATE_EPOCH", EPOCH)
    with tempfile.TemporaryDirectory() as unpacked:
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked, [name for name in archive.namelist() if ".dist-info/" in name])
        # Before what is installed: there ours are editable, and may be of another day.
        found = inventory.installed([Path(unpacked), *inventory.site_folders(sys.executable)])
        for name, requirement in DISTRIBUTIONS.items():
            project = ROOT / name / "pyproject.toml"
            inventory.write(name, inventory.needed(found, requirement), folder, project)


def sums(folder: Path) -> str:
    """The digests of all files of a folder, as `sha256sum -c` reads them."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes all of it beside the target, then puts it there in the place of what was made before."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder to write to")
    parser.add_argument("--wheels-only", action="store_true", help="neither source archives nor descriptions")
    told = parser.parse_args(arguments)
    out: Path = told.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as place:
        made = Path(place)
        build(made, wheels_only=told.wheels_only)
        if not told.wheels_only:
            describe(made)
            (made / "SHA256SUMS").write_text(sums(made), "utf-8")
        for pattern in OURS:
            for old in out.glob(pattern):
                old.unlink()
        for path in sorted(made.iterdir()):
            print(shutil.move(path, out / path.name))


if __name__ == "__main__":
    main()
